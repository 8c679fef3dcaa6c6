-- What the SQL surface says of some tasks: first their states, then their steps', and of each step whether its shared circuit
-- keeps it back.
select task_id, 0 as step_no, status as state, false as is_ready, false as is_kept_back
from get_task_execution_contexts_batch($1::bigint[])
union all
select task_id, (workflow_step_id - task_id)::int, current_state, ready_for_execution,
  circuit is not null and coalesce(waiting_for in ('circuit', 'limit', 'paused'), false)
from get_step_readiness_status_batch($1::bigint[])
