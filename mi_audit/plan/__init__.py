"""What an audit intends to do, fixed before any model loads: specs, tracing, the plan and its digest. Runs without torch."""
