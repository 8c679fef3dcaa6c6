-- What is set on a circuit itself. $1 circuit_id int
select (policy).* from circuit where circuit_id = $1
