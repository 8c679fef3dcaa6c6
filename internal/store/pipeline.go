package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pipeline is a transaction whose statements travel in as few round trips as the verb allows: BEGIN rides with the first
// batch, COMMIT with the last, and one of a single batch does without both. A statement that fails keeps every later one,
// COMMIT included, from running.
type pipeline struct {
	conn  *pgxpool.Conn
	begun bool
	done  bool
}

// inPipeline runs f in a pipelined transaction, and again as inTx would. f must end it with commit.
func (s *Store) inPipeline(ctx context.Context, f func(*pipeline) error) error {
	return s.retry(ctx, func() error {
		conn, err := s.Hot.Acquire(ctx)
		if err != nil {
			return err
		}
		p := &pipeline{conn: conn}
		err = f(p)
		if p.begun && !p.done {
			// The connection goes back clean or not at all; the caller's context may be over by now.
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			if _, rollbackErr := conn.Exec(cleanup, "rollback"); rollbackErr != nil {
				_ = conn.Conn().Close(cleanup)
			}
		}
		conn.Release()
		return err
	})
}

// send runs a batch within the transaction.
func (p *pipeline) send(ctx context.Context, statements *pgx.Batch) error {
	if !p.begun {
		with := &pgx.Batch{}
		with.Queue("begin")
		with.QueuedQueries = append(with.QueuedQueries, statements.QueuedQueries...)
		statements = with
		p.begun = true
	}
	return p.conn.SendBatch(ctx, statements).Close()
}

// copyIn puts rows into a table by COPY. It takes round trips of its own.
func (p *pipeline) copyIn(ctx context.Context, table string, columns []string, rows pgx.CopyFromSource) error {
	if !p.begun {
		if err := p.send(ctx, &pgx.Batch{}); err != nil {
			return err
		}
	}
	_, err := p.conn.Conn().CopyFrom(ctx, pgx.Identifier{table}, columns, rows)
	return err
}

// commit runs the last batch and commits. relaxed leaves the commit's durability to the next flush of the log: only for
// what is no loss when forgotten.
func (p *pipeline) commit(ctx context.Context, statements *pgx.Batch, relaxed bool) error {
	if !p.begun && !relaxed {
		// A batch ends with one Sync, and what comes up to it is a transaction of its own: Postgres commits at the Sync, or
		// undoes all of it if a statement failed, and the batch is closed when it has said so.
		return p.conn.SendBatch(ctx, statements).Close()
	}
	if relaxed {
		first := &pgx.Batch{}
		first.Queue("set local synchronous_commit = off")
		first.QueuedQueries = append(first.QueuedQueries, statements.QueuedQueries...)
		statements = first
	}
	statements.Queue("commit")
	err := p.send(ctx, statements)
	p.done = err == nil
	return err
}

// each queues a statement whose rows scan reads.
func each(b *pgx.Batch, name string, scan func(pgx.Rows) error, args ...any) {
	b.Queue(sqlText(name), args...).Query(func(rows pgx.Rows) error {
		defer rows.Close()
		for rows.Next() {
			if err := scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}
