"""What does each head see at each step, and what would the model answer if it stopped there?"""

import hashlib

import numpy as np
import streamlit as st

from analyses import steps, style
from app import live

run = live.run()
st.title("One image, step by step")
model = live.guarded(live.load, run)


def choose() -> tuple[np.ndarray, np.ndarray | None, int | None, str] | None:
    """The chosen image [3 h w], the mask of its object or None, its label or None, and a name for it."""
    upload = st.sidebar.file_uploader("Your own picture", ["png", "jpg", "jpeg", "webp", "bmp"], key="upload")
    if upload is not None:
        image = live.guarded(live.from_upload, model, upload.getvalue(), upload.name)
        return None if image is None else (image, None, None, upload.name)
    data = live.images_at_hand(model) if model.origin.data else None
    if data is None:
        st.info("Upload a picture in the sidebar: photographs of any size will do.")
        return None
    live.linked("image", 0, range(len(data)))
    st.sidebar.number_input("Image of the validation split", 0, len(data) - 1, key="image", on_change=live.remember("image"))
    st.sidebar.button("Another one", on_click=at_random, args=(len(data),))
    image, label, mask = data[st.session_state["image"]]
    outline = None if mask is None else (mask.numpy() == label + 1).astype(float)
    return image.numpy(), outline, label, f"image {st.session_state['image']}: {data.classes[label]}"


def at_random(n: int) -> None:
    st.session_state["image"] = int(np.random.default_rng().integers(n))
    live.remember("image")()


@st.fragment
def at_step(picture: np.ndarray, mask: np.ndarray | None, label: int | None, image: np.ndarray, key: str, seen: dict) -> None:
    """Everything that moves with the slider; the model is not run again."""
    config = model.config
    live.linked("step", 0, range(config.n_steps))
    step = st.select_slider("Step", range(config.n_steps), format_func=style.step_label, key="step", on_change=live.remember("step"))
    figure = steps.attention(picture, seen["attention"][step], mask)
    st.markdown(f"**What CLS attends to at {style.step_label(step)}**, one panel a head")
    live.chart(figure, f"attention {key[:8]} blocks.{step}")
    st.caption(
        "Attention from the CLS token to the patches (brighter is more), the cross at its maximum, the object outlined in white. "
        f"To itself CLS pays {', '.join(f'{100 * a:.0f} %' for a in seen['to_cls'][step])} (head 0 to {config.n_heads - 1})."
    )
    live.export(figure, f"attention blocks.{step}")
    left, right = st.columns(2)
    with left:
        st.markdown("**The answer as it forms** (logit lens)")
        if "probability" in seen:
            live.chart(steps.lens(seen["probability"], names(), step=step, truth=label), f"lens {key[:8]}")
            ablate(image, key, seen["probability"][-1], step)
        else:
            st.info("This model has no classifier, so there is no answer to read out.")
    with right:
        st.markdown("**Norm of every token**")
        side = config.image_size // config.patch_size
        norm = seen["norm"]
        patches = norm[:, config.n_prefix :].reshape(len(norm), side, side)
        live.chart(steps.norms(patches, norm[:, 0], norm[:, 1 : config.n_prefix], step=step), f"norms {key[:8]} blocks.{step}")
        st.caption("Patches of unusually high norm on plain background are the artefact that registers were made for.")


def names() -> list[str]:
    return list(model.config.classes or map(str, range(model.config.n_classes)))


def ablate(image: np.ndarray, key: str, before: np.ndarray, step: int) -> None:
    """Set one head to zero at this step alone, and say what becomes of the answer."""
    live.linked("head", -1, range(-1, model.config.n_heads))
    heads = range(-1, model.config.n_heads)
    head = st.selectbox(
        f"Switch a head off at {style.step_label(step)}", heads, format_func=lambda h: "none" if h < 0 else f"head {h}", key="head",
        on_change=live.remember("head"),
    )  # fmt: skip
    if head >= 0:
        after = live.without_head(model, key, image, step, head)
        best, now = int(before.argmax()), int(after.argmax())
        st.write(
            f"{names()[best]}: {100 * before[best]:.1f} % → {100 * after[best]:.1f} %; the answer is now **{names()[now]}** ({100 * after[now]:.1f} %)"
        )


if model is not None:
    chosen = choose()
    if chosen is not None:
        image, mask, label, name = chosen
        key = model.origin.sha256[:16] + hashlib.sha256(image.tobytes()).hexdigest()[:16]
        seen = live.guarded(live.trace, model, key, image)
        if seen is not None:
            picture = live.pixels(model, image)
            left, right = st.columns([1, 4])
            left.image(picture, width=190)
            right.subheader(name)
            if "probability" in seen:
                answer = int(seen["probability"][-1].argmax())
                right.markdown(f"The model answers **{names()[answer]}** ({100 * seen['probability'][-1, answer]:.1f} %).")
            at_step(picture, mask, label, image, key, seen)
