"""Orders the stages and watches them: in parallel, on a schedule, in a dashboard."""
