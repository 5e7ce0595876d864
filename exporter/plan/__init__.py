"""What is probed and when. Pure: no I/O, no clock.

targets         what one target is probed with, and what it says about itself
safety          what must not be sent to a target
check_warnings  warnings of `tgi-probe check`
schedule        when each probe is due; pauses after probes and failures
arrivals        when each request of a background load is due
prompts         prompts for routers; `prompt_lengths`: how many words make a prompt of a given number of tokens
shard_prompts   prompts and ids for shards
words           the words of all prompts
"""
