package history

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// fetchSize is how many rows a cursor takes at once.
const fetchSize = 4096

// cursor reads a query's rows in order, a few thousand at a time: several can be read side by side, in step.
type cursor[T any] struct {
	tx    pgx.Tx
	name  string
	rows  []T
	at    int
	ended bool
}

func openCursor[T any](ctx context.Context, tx pgx.Tx, name string) (*cursor[T], error) {
	if _, err := tx.Exec(ctx, fmt.Sprintf("declare %s no scroll cursor for %s", name, sqlText(name))); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return &cursor[T]{tx: tx, name: name}, nil
}

// peek is the next row, nil at the end.
func (c *cursor[T]) peek(ctx context.Context) (*T, error) {
	if c.at == len(c.rows) && !c.ended {
		rows, err := c.tx.Query(ctx, fmt.Sprintf("fetch %d from %s", fetchSize, c.name))
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", c.name, err)
		}
		if c.rows, err = pgx.AppendRows(c.rows[:0], rows, pgx.RowToStructByPos[T]); err != nil {
			return nil, fmt.Errorf("reading %s: %w", c.name, err)
		}
		c.at, c.ended = 0, len(c.rows) < fetchSize
	}
	if c.at == len(c.rows) {
		return nil, nil
	}
	return &c.rows[c.at], nil
}

// of gives the rows of a task to f, after giving those of lower ids, which belong to none, to orphan.
func (c *cursor[T]) of(ctx context.Context, taskID int64, idOf func(*T) int64, orphan, f func(*T)) error {
	for {
		row, err := c.peek(ctx)
		if err != nil {
			return err
		}
		if row == nil || idOf(row) > taskID {
			return nil
		}
		if c.at++; idOf(row) < taskID {
			orphan(row)
		} else {
			f(row)
		}
	}
}
