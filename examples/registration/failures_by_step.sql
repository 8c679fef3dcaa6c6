SELECT
  name,
  COUNT(*) as failure_count,
  AVG(attempts) as avg_attempts,
  MAX(backoff_request_seconds) as max_backoff
FROM get_step_readiness_status(task_id)
WHERE current_state = 'error'
GROUP BY name;
