-- The idempotency keys that are remembered.
select namespace.name as namespace, submit_key.key, submit_key.task_id
from submit_key join namespace on namespace.namespace_id = submit_key.namespace_id
