package store

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5"
)

// errUndo ends a Preview.
var errUndo = errors.New("undone")

// Preview runs queries (nil: none) and then a claim in one transaction, and undoes all of it: it shows what the claim would be
// granted.
func (s *Store) Preview(ctx context.Context, namespaceID int32, claim *Claim, first *pgx.Batch) (grants []Grant, err error) {
	err = s.inPipeline(ctx, func(p *pipeline) error {
		grants = nil
		if first == nil {
			first = &pgx.Batch{}
		}
		if use := claim.circuitUse(); len(use) > 0 {
			s.lockCircuits(first, use)
		}
		s.queueClaim(first, namespaceID, claim, &grants)
		if err := p.send(ctx, first); err != nil {
			return err
		}
		return errUndo
	})
	if errors.Is(err, errUndo) {
		err = nil
	}
	return grants, err
}

// CopyFrom is how many steps a submit must have for COPY to store them.
const CopyFrom = copyFrom

// Commit runs a batch as a transaction of its own.
func (s *Store) Commit(ctx context.Context, b *pgx.Batch, relaxed bool) error {
	return s.inPipeline(ctx, func(p *pipeline) error {
		again := &pgx.Batch{QueuedQueries: append([]*pgx.QueuedQuery(nil), b.QueuedQueries...)}
		return p.commit(ctx, again, relaxed)
	})
}

// HoldClaim claims in a transaction that stays open until end is called for the first time, which commits it.
func (s *Store) HoldClaim(ctx context.Context, namespaceID int32, claim *Claim) (grants []Grant, end func() error, err error) {
	conn, err := s.Hot.Acquire(ctx)
	if err != nil {
		return nil, nil, err
	}
	p := &pipeline{conn: conn}
	b := &pgx.Batch{}
	s.queueClaim(b, namespaceID, claim, &grants)
	if err := p.send(ctx, b); err != nil {
		conn.Release()
		return nil, nil, err
	}
	return grants, sync.OnceValue(func() error {
		defer conn.Release()
		return p.commit(context.WithoutCancel(ctx), &pgx.Batch{}, false)
	}), nil
}

// SQL is the text of a statement.
func SQL(name string) string { return sqlText(name) }
