-- A namespace's default policy, and what is in force for a circuit that sets nothing. A namespace that is not there sets nothing either. $1 namespace_id int
select (found.defaults).*, (circuit_policy_in_force(null, found.defaults)).*
from (select (select circuit_defaults from namespace where namespace_id = $1) as defaults) as found
