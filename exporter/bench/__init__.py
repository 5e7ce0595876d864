"""`tgi-probe bench`: one sweep over batch sizes, as tables."""
