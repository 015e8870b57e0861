# SPDX-License-Identifier: Apache-2.0
"""What leaves with an exported model: its code, examples of its use.

These files and those of encoder/ are written side by side into one flat folder, where they need torch and the runtime
that they are for, but not skill_speech. Only then do their imports of the encoder read `from .encoder import …`.
"""
