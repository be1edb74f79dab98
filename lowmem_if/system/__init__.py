"""What differs between Linux, macOS and Windows. Nothing else calls what only some systems have.

Each function picks its way by `sys.platform` of its own module. So a test can replace `sys` there and
run another system's way (`tests/system/`). mypy checks all three ways (`make check`).
"""
