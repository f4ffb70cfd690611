"""Do the states of all steps speak in the same features?"""

import streamlit as st

from analyses import dictionary as analysis
from analyses import features, style
from app import page, results
from app.contents import DICTIONARY
from app.text import text

st.title("Do the states of all steps speak in the same features?")
st.markdown(
    "One sparse dictionary is trained on the states of **all** steps, for CLS and for patches apart: every state is a "
    "sum of a few of its features. Beside it, one for each state, and the same one **rotated** at random. Features "
    "were matched to known factors on the images of the training; everything here is measured on others."
)
result = results.required(DICTIONARY, "Nobody has taken this run's states apart yet. This does it:")
if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")
n_states, n_features = result.sizes["state"], result.sizes["feature"]
token = page.segments(st, "Tokens", list(result["token"].values), "dictionary_token")


def show_numbers() -> None:
    columns, shared = st.columns(4), result.sel(kind="shared", token=token)
    explained, low, high = (100 * float(shared[f"explained_by_all{end}"]) for end in analysis.ENDS)
    page.metric(columns[0], "explained, mean of the states", f"{explained:.1f} %", f"95 %: {low:.1f} to {high:.1f}")
    if "separate" in result["kind"].values:
        of = result.sel(kind="separate", token=token)
        cost, low, high = (100 * float(of[f"sharing{end}"]) for end in analysis.ENDS)
        about = "explained by one for all states, less what one per state of the same total size explains"
        page.metric(columns[1], "sharing", f"{cost:+.1f} points", f"95 %: {low:+.1f} to {high:+.1f}", help=about)
    lived, rotated = (
        float(features.span(result[f"{prefix}profile"].sel(token=token))["length"].mean())
        for prefix in ("", "rotated_")
    )
    page.metric(columns[2], "a feature lives over", f"{lived:.1f} of {n_states} states", f"rotated {rotated:.1f}")
    dead = 100 * float(shared["dead_everywhere"])
    page.metric(columns[3], "never fire", f"{dead:.1f} % of {n_features}", f"L0 in training {result.attrs['k']}")


@page.part
def show_feature(token: str) -> None:
    """Profile, concepts and top images of one feature."""
    found = [feature for of_token, feature, _ in features.shown(result) if of_token == token]
    feature = page.number(st, "Feature", n_features, "feature", found[0] if found else 0, shown="feature %d")
    left, right = st.columns(2)
    with left:
        page.show(results.drawn(DICTIONARY, features.of_feature, token, feature), "dictionary feature")
    with right:
        st.markdown("Told best, on the images of the training (beside the same for values of other images):")
        st.dataframe(features.match_frame(result, token, feature), hide_index=True)
        st.markdown("Images on which it fires most, by their number in the data:")
        st.dataframe(features.top_frame(result, token, feature), hide_index=True)
    pictures = features.top_pictures(result, token, feature)
    if pictures:
        st.image([picture for picture, _ in pictures], [text(said) for _, said in pictures], width=110)


show_numbers()
left, right = st.columns(2)
with left:
    st.subheader("What is explained?")
    explained = results.drawn(DICTIONARY, analysis.interactive, token)
    page.show(explained, "dictionary", table=lambda: analysis.frame(result))
with right:
    st.subheader("How many features fire?")
    page.show(results.drawn(DICTIONARY, analysis.l0_curves), "dictionary L0")
left, right = st.columns(2)
with left:
    st.subheader("When does each live?")
    page.show(results.drawn(DICTIONARY, features.profile_map, token), "dictionary profiles")
with right:
    st.subheader("Over how many states?")
    page.show(results.drawn(DICTIONARY, analysis.life_curves, token), "dictionary lives")
st.subheader("One feature")
show_feature(token)
page.save_table(lambda: features.feature_frame(result), "dictionary features", "All features as CSV")
left, right = st.columns(2)
with left:
    st.subheader("What do features tell?")
    st.caption("The best feature of each value, mean over the values of a factor; dotted: values of other images.")
    page.show(results.drawn(DICTIONARY, analysis.told_curves, token), "dictionary factors")
effects = results.drawn(DICTIONARY, analysis.effect_curves, token)
if effects is not None:
    with right:
        st.subheader("What is lost without them?")
        page.show(effects, "dictionary effects")
if "thumbnail" not in result:
    st.info(results.without_pixels(result, "its images are"))
st.code(results.drawn(DICTIONARY, analysis.table), language=None)
if "untrained" in style.models(result):
    st.caption("Dashed: the same model untrained, with a dictionary of its own.")
