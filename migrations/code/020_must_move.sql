-- A moving statement must move exactly the rows that were locked before it. If it did not, the transaction ends here, and
-- the caller runs it again (SQLSTATE TK001); a pipelined COMMIT behind it does nothing.
create or replace function must_move(moved bigint, locked int) returns int
language plpgsql
as $$
begin
  if moved is distinct from locked then
    raise exception 'moved % rows where % were locked', moved, locked using errcode = 'TK001';
  end if;
  return moved;
end
$$;
comment on function must_move(bigint, int) is 'Ends the transaction with SQLSTATE TK001 unless as many rows were moved as were locked.';
