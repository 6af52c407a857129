"""The training loop. It uses methods through their interface (`methods/base.py`) alone."""
