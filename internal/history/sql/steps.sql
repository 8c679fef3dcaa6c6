-- The submitted graphs: every step's parents and policy.
select task_id, step_no, parents, retry_limit, retryable, max_lost_leases::int as max_lost_leases,
  (extract(epoch from backoff_initial) * 1000000)::bigint as backoff_initial, backoff_multiplier,
  (extract(epoch from backoff_max) * 1000000)::bigint as backoff_max, backoff_jitter,
  (extract(epoch from max_retry_after) * 1000000)::bigint as max_retry_after, non_retryable_codes
from step
order by task_id, step_no
