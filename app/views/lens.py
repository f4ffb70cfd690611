"""What do the states say?"""

import streamlit as st

from analyses import lens as analysis
from analyses import style
from app import image, page, results
from app.contents import LENS
from app.text import text

st.title("What do the states say?")
st.markdown(
    "After every step the head can read the state as if it were the last (**logit lens**), or through a map that was "
    "fitted to what the model will answer: one per state (**tuned**), one that is applied as often as steps are left "
    "(**powers**), one for all states (**same**), or the mean derivative of the last state (**Jacobian**). Maps are "
    "fitted on some images, everything is measured on others; dashed: the same model untrained."
)
result = results.required(LENS, "Nobody has read this run's states yet. This does it:")
if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")


def show_numbers() -> None:
    attrs, columns = result.attrs, st.columns(4)
    top1, n = 100 * float(result["is_right"].mean()), attrs["n_measured"]
    page.metric(columns[0], f"top-1 of {n} images", f"{top1:.1f} %", f"chance {100 * attrs['chance']:.1f} %")
    about = (
        "the share of what one map per state gains on the logit lens (divergence) "
        "that one map keeps, applied T - t times"
    )
    low, high = (100 * float(result[f"recovered_{end}"].sel(lens="powers")) for end in ("low", "high"))
    kept = f"{100 * float(result['recovered'].sel(lens='powers')):.1f} %"
    page.metric(columns[1], "powers of one map keep", kept, f"95 %: {low:.1f} to {high:.1f}", help=about)
    of = result.sel(lens="logit")
    independent = f"if states were independent {float(analysis.chance_depth(of)):.1f}"
    page.metric(columns[2], "answer stands from step", f"{float(of['mean_depth']):.1f}", independent)
    independent = f"if states were independent {float(of['chance_flips']):.1f}"
    page.metric(columns[3], "flips of the answer", f"{float(of['mean_flips']):.1f}", independent)


@page.part
def show_image() -> None:
    """What every patch of one image says after a step; the model is not run."""
    classes, last = list(result.attrs["classes"]), result.sizes["state"] - 1
    st.header("One image, patch by patch")
    left, right = st.columns(2)
    place = page.number(left, "Image", result.sizes["place"], "lens_image", shown="image %d")
    state = page.number(right, "State after step", last + 1, "lens_state", last)
    label = int(result["thumbnail_class"].values[place])
    answers = {
        lens: classes[int(result["thumbnail_answer"].sel(lens=lens, state=state).values[place])]
        for lens in result["lens"].values
    }
    left.image(result["thumbnail"].values[place], text(classes[label]), width=190, alt=classes[label])
    image.to_story(left, int(result["index"].values[result["shown"].values[place]]), result)
    left.markdown("\n".join(f"- {analysis.LENSES[lens]}: **{text(answer)}**" for lens, answer in answers.items()))
    with right:
        page.show(analysis.patches(result, place, state), "lens patches", classes[label])


show_numbers()
left, right = st.columns(2)
with left:
    st.header("Through every lens")
    metric = st.selectbox(
        "Measure", analysis.METRICS, key="lens_measure", format_func=analysis.METRICS.get, **page.LINKED
    )
    page.show(analysis.interactive(result, metric), "lens", table=lambda: analysis.frame(result))
with right:
    st.header("When does the answer stand?")
    st.caption("Logit lens; dotted: if every state answered as often as it does, but regardless of the others.")
    page.show(analysis.depth_curves(result).interactive(), "lens depth")

left, right = st.columns(2)
with left:
    st.header("What do the patches say?")
    page.show(analysis.patch_curves(result).interactive(), "lens shares")
agreement = analysis.agreement_curves(result)
if agreement is not None:
    with right:
        st.header("Do they agree with the mask?")
        page.show(agreement.interactive(), "lens agreement")
if "thumbnail" in result:
    show_image()
else:
    st.info(results.without_pixels(result, "its images are"))

st.header("What adds to the answer?")
st.caption("Every head and FFN of every step; with the embedding and the bias, the parts sum to the logit exactly.")
to = page.segments(st, "What a part adds", list(analysis.TO), "adds", help="margin: to the class less to the others")
models = style.models(result)
shown = dict(zip(models, st.columns(2), strict=False))
limit = analysis.largest(result, to)
for model, place in shown.items():
    with place:
        st.markdown(f"**{text(model)}**")
        page.show(analysis.part_map(models[model], to, limit=limit).interactive(), f"lens parts {model}")
page.save_table(lambda: analysis.part_frame(result), "lens parts", "All parts as CSV")
st.code(analysis.table(result), language=None)
