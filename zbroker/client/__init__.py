"""The client: `Producer`, `Consumer` and `Admin`, and their asyncio faces.

Pure cores decide (`metadata`, `producing`, `consuming`, `splice`, `administering`), one thread a client owns the
sockets (`connection`), and thin faces are what applications hold (`producer`, `consumer`, `admin`, `aio`). Applications
import all of it from `zbroker`. Never imports the broker's side.
"""
