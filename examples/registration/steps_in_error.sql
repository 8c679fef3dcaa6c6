SELECT
  name,
  current_state,
  retry_eligible,
  next_retry_at,
  attempts,
  backoff_request_seconds
FROM get_step_readiness_status(task_id)
WHERE current_state = 'error';
