"""The dashboard, served: ``streamlit run app/main.py -- --runs DIR`` (default runs/).

Streamlit imports this file once, when it starts; `navigation` runs for every visitor.
"""

from pathlib import Path

from streamlit.starlette import App

from app import door

door.say_who_may_look()
dashboard = App(Path(__file__).with_name("navigation.py"), middleware=[door.MIDDLEWARE], routes=door.ROUTES)
