-- Gives the pauses of a namespace, which this transaction has locked (lock_pauses.sql), their next number.
-- $1 namespace_id int
update namespace set pauses = pauses + 1 where namespace_id = $1 returning pauses
