package store

import (
	"bytes"
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// known is a row of lookup_report.sql.
type known struct {
	EndedDigest   []byte
	EndedState    *string
	EndedByToken  *bool
	FailedDigest  []byte
	FailedOutcome *string
	Standing      *string
	Leased        bool
}

// ReportLate decides a report whose lease is gone, in this order:
//
//  1. the dispatch was concluded by this token with an equal outcome: recorded already, whatever happened since
//  2. with another outcome: the worker contradicts itself
//  3. it is the step's latest dispatch, and the step waits, or is parked, only because that dispatch came back without a
//     result: the report is accepted as if it had come in time
//  4. else the lease is lost; the outcome is kept as evidence on that dispatch
//
// Each try looks in a fresh snapshot, since a row on its way from one table to another is seen in neither by a lock.
func (s *Store) ReportLate(ctx context.Context, r *task.Report) (answer Answer, change Change, err error) {
	id, no := int64(r.Token.Step.Task()), r.Token.Step.No()
	err = s.inTx(ctx, s.Hot, func(tx pgx.Tx) error {
		answer, change = Answer{}, Change{}
		rows, err := tx.Query(ctx, sqlText("lookup_report"), id, no, r.Token.Nonce, r.Token.Dispatch)
		if err != nil {
			return err
		}
		k, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[known])
		if err != nil {
			return err
		}
		digest := k.FailedDigest
		if deref(k.EndedByToken) {
			digest = k.EndedDigest
		}
		switch {
		case digest != nil && bytes.Equal(digest, r.Digest[:16]):
			answer.Reported, err = s.stepAfter(ctx, tx, r.Token)
			if err != nil {
				return err
			}
			answer.Reported.AlreadyRecorded = true
			return nil
		case digest != nil:
			answer.Refused = task.Refuse(task.ResultConflict, "this dispatch was concluded by the same token with another outcome")
			return nil
		case k.Leased:
			return errAgain // it came back while we looked
		case k.Standing != nil:
			return s.acceptLate(ctx, tx, r, *k.Standing, &answer, &change)
		}
		answer.Refused = task.Refuse(task.LeaseLost, "the lease is lost: the step was granted again or has ended")
		_, err = tx.Exec(ctx, sqlText("record_late"), s.at(), r.Token.NamespaceID, id, no, r.Token.Dispatch, string(r.Outcome), r.Digest[:16],
			orNil(r.Failure.ErrorCode), orNil(r.Failure.Message), orNil(r.Results), r.Token.SessionID)
		return err
	})
	return answer, change, err
}

// acceptLate gives the waiting step its lease again and concludes it like any other.
func (s *Store) acceptLate(ctx context.Context, tx pgx.Tx, r *task.Report, standing string, answer *Answer, change *Change) error {
	args := []any{s.at(), int64(r.Token.Step.Task()), r.Token.Step.No(), r.Token.Nonce, r.Token.Dispatch, r.Token.SessionID}
	tag, err := tx.Exec(ctx, sqlText("readopt_"+standing), args...)
	if err != nil {
		return err
	}
	if tag.RowsAffected() != 1 {
		return errAgain
	}
	if standing == "parked" {
		ids := []int64{int64(r.Token.Step.Task())}
		if _, err := tx.Exec(ctx, sqlText("reopen_tasks"), s.at(), ids, r.Token.NamespaceID, nil, nil); err != nil {
			return err
		}
	}
	f := Flushed{Answers: make([]Answer, 1)}
	b := &pgx.Batch{}
	reports := []task.Report{*r}
	if r.Outcome == task.Success {
		s.queueComplete(b, r.Token.NamespaceID, reports, []int{0}, &f)
	} else {
		s.queueFail(b, r.Token.NamespaceID, reports, []int{0}, &f)
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	if f.Answers[0].Reported == nil {
		return errAgain
	}
	*answer, *change = f.Answers[0], f.Change
	if standing == "parked" {
		change.Settle = append(change.Settle, r.Token.Step.Task())
	}
	return nil
}

func (s *Store) stepAfter(ctx context.Context, tx pgx.Tx, token task.Token) (*task.Reported, error) {
	r := &task.Reported{Step: token.Step}
	var (
		state        string
		park, source *string
		runnable     *bool
	)
	err := tx.QueryRow(ctx, sqlText("step_after"), int64(token.Step.Task()), token.Step.No(), token.Dispatch, s.at()).Scan(
		&state, &r.Attempts, &r.Dispatches, &r.LostLeases, &r.Epoch, &r.RetryLimit, &park, &r.ErrorCode, &r.RecordedAt,
		&r.NextRetryAt, &r.AppliedDelay, &source, &r.DelayClamped, &runnable)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errAgain // its task was purged since it was looked up
	}
	r.Parked, r.ParkedReason = park != nil, deref(park)
	r.State, r.DelaySource, r.RetryEligible = task.StepState(state), task.DelaySource(deref(source)), deref(runnable)
	return r, err
}
