-- Locks circuits for the rest of the transaction, before any live row: shared by claims that take a circuit for plain, alone
-- for whoever will change or count. No predicate stands beside the key, so no row is left unlocked because it changed
-- while it was waited for. $1 circuit_id int[], $2 exclusive boolean[]; sorted by circuit_id: the lock order
select locked.circuit_id
from unnest($1::int[], $2::boolean[]) as wanted (circuit_id, exclusive)
cross join lateral (
  select * from (select c.circuit_id from circuit c where c.circuit_id = wanted.circuit_id and not wanted.exclusive for share) shared
  union all
  select * from (select c.circuit_id from circuit c where c.circuit_id = wanted.circuit_id and wanted.exclusive for update) alone
) locked
