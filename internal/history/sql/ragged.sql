-- Records whose arrays cannot be read by position.
select history_id
from history
where step_nos is not null and (
  cardinality(step_nos) <> cardinality(task_ids) or cardinality(event_nos) is distinct from cardinality(task_ids)
  or cardinality(dispatches) is distinct from cardinality(task_ids)
  or cardinality(epochs) <> cardinality(task_ids) or cardinality(session_ids) <> cardinality(task_ids)
  or cardinality(attempts) <> cardinality(task_ids) or cardinality(failures) <> cardinality(task_ids)
  or cardinality(lost_leases) <> cardinality(task_ids) or cardinality(states) <> cardinality(task_ids)
  or cardinality(delay_sources) <> cardinality(task_ids) or cardinality(base_delays) <> cardinality(task_ids)
  or cardinality(jitters) <> cardinality(task_ids) or cardinality(next_retry_ats) <> cardinality(task_ids)
  or cardinality(error_codes) <> cardinality(task_ids))
order by history_id
