"""When does each factor of the image become readable?"""

import streamlit as st

from analyses import factors as analysis
from analyses import style
from app import page, results
from app.contents import FACTORS
from app.text import text

st.title("When does each factor of the image become readable?")
st.markdown(
    "A linear probe of every state, fitted on some images and measured on others: what is known of an image (on the "
    "embedded data all it was made from, on photographs its class) is read from CLS, and from means of patches. Beside "
    "it **chance** (the best constant answer), the same probe of **shuffled** values, the **untrained** model "
    "(dashed), and the probes of the **other steps**: one code, or many?"
)
result = results.required(FACTORS, "Nobody has asked this run's states for factors yet. This does it:")
if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")
left, right = st.columns(2)
factors, tokens = (result[name].values.tolist() for name in ("factor", "token"))
page.keep_within("factor", factors, factors[0])
factor = left.selectbox("Factor", factors, key="factor", format_func=text, **page.LINKED)
asked = [token for token in tokens if analysis.is_asked(result, factor, token)]
page.keep_within("token", asked, asked[0])
token = page.segments(right, "From", asked, "token", help="patches, object, background: means of these patches")
at, chance = dict(factor=factor, token=token), analysis.chance_of(result, factor)
state, untrained = analysis.best(result, factor, token), style.untrained(result, "score")
columns = st.columns(4)
beside = f"chance {100 * chance:.1f} %" + (
    "" if untrained is None else f", untrained at best {100 * float(untrained.sel(at).max()):.1f} %"
)
score = f"{100 * float(result['score'].sel(dict(at, state=state))):.1f} %"
sure = f"{analysis.measure_of(result, factor)}: {style.with_interval(result, 'score', dict(at, state=state))}"
page.metric(columns[0], f"best, after step {state}", score, beside, help=sure)
page.metric(
    columns[1], "half way after step", style.with_interval(result, "half", at, scale=1, digits=0), "95 % interval"
)
selectivity = style.with_interval(result, "selectivity", dict(at, state=state))
page.metric(columns[2], "above shuffled values", selectivity.partition(" ")[0], f"points, 95 %: {selectivity}")
about = "of what a step's own probe reads above chance, from the step on that is half way"
shared = style.with_interval(result, "shared", at, digits=0)
page.metric(columns[3], "other steps' probes read (%)", shared, "chance 0", help=about)

left, right = st.columns(2)
with left:
    st.header("Over the steps")
    page.show(analysis.interactive(result, factor), "factors", table=lambda: analysis.frame(result))
with right:
    st.header("One code or many?")
    shown = analysis.transfer_map(style.models(result)["trained"], factor, token, chance=chance)
    page.show(shown.interactive(), "factors transfer", table=lambda: analysis.transfer_frame(result))
st.code(analysis.table(result), language=None)
