"""The colours and shapes of our HTML pages, light and dark. Pure."""

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#59636e;--line:#d1d9e0;--paper:#fff;--good:#1a7f37;--bad:#cf222e}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#9198a1;--line:#3d444d;--paper:#0d1117;--good:#3fb950;
--bad:#f85149}}
body{margin:0 auto;max-width:80rem;padding:1rem;font:15px/1.45 system-ui,sans-serif;color:var(--ink);
background:var(--paper);overflow-wrap:anywhere}
h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}a{color:inherit}
.good{color:var(--good)}.bad{color:var(--bad)}.dim{color:var(--dim)}
.charts{margin-top:1.6rem;display:grid;grid-template-columns:repeat(auto-fit,minmax(19rem,1fr));gap:1rem}figure{margin:0}
figcaption{font-weight:600}svg{width:100%;height:auto}svg text{fill:var(--dim);font:12px system-ui,sans-serif}
svg .axis{stroke:var(--line)}svg .label{fill:var(--ink)}
"""
