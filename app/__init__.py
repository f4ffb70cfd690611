"""The dashboard: ``make demo``, or ``streamlit run app/main.py -- --runs DIR``."""
