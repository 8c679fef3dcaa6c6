package store

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Beat is one lease to extend.
type Beat struct {
	Token      task.Token
	Checkpoint string // one JSON object, verbatim; empty leaves the stored one
}

// Extended is a lease as a heartbeat left it.
type Extended struct {
	Until    time.Time
	RunUntil *time.Time // when its run timeout ends it; nil: never
	StopAt   *time.Time // when a deadline ends it; nil: never
}

// Heartbeat extends the leases that are still held, and keeps their checkpoints. Tokens without a lease are absent from
// the answer. Beats are of one namespace and differ in their tokens.
func (s *Store) Heartbeat(ctx context.Context, namespaceID int32, beats []Beat) (extended map[[16]byte]Extended, err error) {
	beats = slices.SortedFunc(slices.Values(beats), func(a, b Beat) int { return cmp.Compare(a.Token.Step, b.Token.Step) })
	ids, nos, tokens := make([]int64, len(beats)), make([]int32, len(beats)), make([][16]byte, len(beats))
	for i, b := range beats {
		ids[i], nos[i], tokens[i] = int64(b.Token.Step.Task()), int32(b.Token.Step.No()), b.Token.Nonce //nolint:gosec // ≤ 10,000
	}
	err = s.inPipeline(ctx, func(p *pipeline) error {
		held := make(map[[16]byte]bool, len(beats))
		b := &pgx.Batch{}
		each(b, "lock_leases", func(rows pgx.Rows) error {
			var token [16]byte
			err := rows.Scan(&token)
			held[token] = true
			return err
		}, ids, nos, tokens)
		if err := p.send(ctx, b); err != nil {
			return err
		}
		var (
			heldIDs                   []int64
			heldNos                   []int32
			savedIDs                  []int64
			savedNos, savedDispatches []int32
			bodies                    []string
			nonceOf                   = make(map[stepKey][16]byte, len(held))
		)
		for i, beat := range beats {
			if !held[beat.Token.Nonce] {
				continue
			}
			heldIDs, heldNos = append(heldIDs, ids[i]), append(heldNos, nos[i])
			nonceOf[stepKey{ids[i], int(nos[i])}] = beat.Token.Nonce
			if beat.Checkpoint != "" {
				savedIDs, savedNos = append(savedIDs, ids[i]), append(savedNos, nos[i])
				savedDispatches, bodies = append(savedDispatches, beat.Token.Dispatch), append(bodies, beat.Checkpoint)
			}
		}
		extended = make(map[[16]byte]Extended, len(heldIDs))
		b = &pgx.Batch{}
		each(b, "heartbeat", func(rows pgx.Rows) error {
			var (
				id int64
				no int
				e  Extended
			)
			if err := rows.Scan(&id, &no, &e.Until, &e.RunUntil, &e.StopAt); err != nil {
				return err
			}
			extended[nonceOf[stepKey{id, no}]] = e
			return nil
		}, s.at(), heldIDs, heldNos, namespaceID)
		if len(bodies) > 0 {
			b.Queue(sqlText("save_checkpoints"), s.at(), savedIDs, savedNos, savedDispatches, bodies)
		}
		return p.commit(ctx, b, false)
	})
	return extended, err
}

// HeldLease names a lease by its step and nonce.
type HeldLease struct {
	Step   task.StepID
	Nonce  [16]byte
	LaneID int32
	// CircuitID of the lane; 0: none.
	CircuitID int32
	// Overdue: a deadline seems to have ended it.
	Overdue bool
	// Delay of a release: the step is not dispatched again before it has passed.
	Delay time.Duration
}

// Ended is a dispatch that the server concluded without a result, or for a timeout.
type Ended struct {
	Token   task.Token
	Outcome task.Outcome
	Parked  bool
}

// expired is a row of lock_expired.sql: a lease under its lock, and what became of it.
type expired struct {
	TaskID     int64
	StepNo     int
	Token      [16]byte
	LaneID     int32
	SessionID  int32
	Dispatches int32
	Outcome    string
	CircuitID  int32
}

func (e expired) token(namespaceID int32) task.Token {
	return task.Token{
		NamespaceID: namespaceID, Step: task.ID(e.TaskID).Step(e.StepNo), Dispatch: e.Dispatches, SessionID: e.SessionID, CircuitID: e.CircuitID, Nonce: e.Token,
	}
}

// ExpiredLeases finds leases whose time is up, over all namespaces, as candidates for Expire.
func (s *Store) ExpiredLeases(ctx context.Context, limit int) ([]HeldLease, error) {
	rows, err := s.Hot.Query(ctx, sqlText("expired_leases"), s.at(), limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (h HeldLease, err error) {
		var (
			id int64
			no int
		)
		err = row.Scan(&id, &no, &h.Nonce, &h.LaneID, &h.CircuitID, &h.Overdue)
		h.Step = task.ID(id).Step(no)
		return h, err
	})
}

// Expire gives leases of one namespace their consequence, if their time is up still: a run timeout is a retryable
// failure, a deadline parks the step, a lease that ran out goes back or, lost too often, parks it.
func (s *Store) Expire(ctx context.Context, namespaceID int32, leases []HeldLease) (ended []Ended, change Change, err error) {
	return s.concludeLeases(ctx, namespaceID, leases, "lock_expired", func(e expired) task.Outcome { return task.Outcome(e.Outcome) }, s.at())
}

// GiveBack concludes leases of one namespace as released or undelivered, if they are held still. One that was confirmed
// was delivered: it stands, whatever the caller thought.
func (s *Store) GiveBack(ctx context.Context, namespaceID int32, leases []HeldLease, outcome task.Outcome) (ended []Ended, change Change, err error) {
	return s.concludeLeases(ctx, namespaceID, leases, "lock_held", func(expired) task.Outcome { return outcome }, outcome == task.Undelivered)
}

// concludeLeases locks leases by the statement lock, whose first arguments are lockArgs, and concludes each as judge says.
func (s *Store) concludeLeases(ctx context.Context, namespaceID int32, leases []HeldLease, lock string, judge func(expired) task.Outcome,
	lockArgs ...any,
) (ended []Ended, change Change, err error) {
	leases = slices.SortedFunc(slices.Values(leases), func(a, b HeldLease) int { return cmp.Compare(a.Step, b.Step) })
	ids, nos, tokens := make([]int64, len(leases)), make([]int32, len(leases)), make([][16]byte, len(leases))
	delays := make(map[[16]byte]time.Duration, len(leases))
	for i, l := range leases {
		ids[i], nos[i], tokens[i] = int64(l.Step.Task()), int32(l.Step.No()), l.Nonce //nolint:gosec // ≤ 10,000
		delays[l.Nonce] = l.Delay
	}
	lockArgs = append(lockArgs, ids, nos, tokens)
	use := circuitUse{}
	overdue := false
	for _, l := range leases {
		use.add(l.CircuitID, true)
		overdue = overdue || l.Overdue
	}
	err = s.inPipeline(ctx, func(p *pipeline) error {
		ended, change = nil, Change{}
		var locked []expired
		b := &pgx.Batch{}
		if len(use) > 0 {
			s.lockCircuits(b, use)
		}
		if overdue {
			b.Queue(sqlText("extend_stops"), s.at(), ids, nos, tokens)
		}
		b.Queue(sqlText(lock), lockArgs...).Query(func(rows pgx.Rows) (err error) {
			locked, err = pgx.CollectRows(rows, pgx.RowToStructByPos[expired])
			return err
		})
		if err := p.send(ctx, b); err != nil {
			return err
		}
		b = &pgx.Batch{}
		s.queueEndedCharges(b, namespaceID, use, locked, judge, &change)
		s.queueEnded(b, namespaceID, locked, delays, judge, &ended, &change)
		return p.commit(ctx, b, false)
	})
	return ended, change, err
}

func (s *Store) queueEnded(b *pgx.Batch, namespaceID int32, locked []expired, delays map[[16]byte]time.Duration, judge func(expired) task.Outcome,
	ended *[]Ended, change *Change,
) {
	var (
		failures []failure
		tokens   = make(map[task.StepID]Ended, len(locked))
		ids      []int64
		nos      []int32
		outcomes []string
		waits    []time.Duration
	)
	for _, e := range locked {
		token, outcome := e.token(namespaceID), judge(e)
		tokens[token.Step] = Ended{Token: token, Outcome: outcome}
		change.Freed = append(change.Freed, token)
		if outcome == task.TimedOut || outcome == task.DeadlineExceeded {
			failures = append(failures, failure{
				token: token, outcome: outcome,
				Failure: task.Failure{ErrorCode: serverErrorCode[outcome], Message: serverMessage[outcome]},
			})
			continue
		}
		ids, nos = append(ids, e.TaskID), append(nos, int32(e.StepNo)) //nolint:gosec // ≤ 10,000
		outcomes, waits = append(outcomes, string(outcome)), append(waits, delays[e.Token])
	}
	if len(failures) > 0 {
		s.queueFailures(b, namespaceID, failures, change, func(_ [16]byte, r *task.Reported) {
			e := tokens[r.Step]
			e.Parked = r.Parked
			*ended = append(*ended, e)
		})
	}
	if len(ids) == 0 {
		return
	}
	each(b, "give_back", func(rows pgx.Rows) error {
		var (
			moved    int
			e        expired
			poisoned bool
			seq      *int64
			dueAt    *time.Time
		)
		if err := rows.Scan(&moved, &e.TaskID, &e.StepNo, &e.Token, &e.SessionID, &e.LaneID, &e.Dispatches, &e.Outcome, &poisoned, &seq, &dueAt); err != nil {
			return err
		}
		token := tokens[task.ID(e.TaskID).Step(e.StepNo)].Token
		*ended = append(*ended, Ended{Token: token, Outcome: task.Outcome(e.Outcome), Parked: poisoned})
		change.Tasks = append(change.Tasks, task.ID(e.TaskID))
		if poisoned {
			change.Settle = append(change.Settle, task.ID(e.TaskID))
		} else {
			change.Wake = append(change.Wake, Wake{LaneID: e.LaneID, Seq: deref(seq), Count: 1, DueAt: dueAt})
		}
		return nil
	}, s.at(), ids, nos, outcomes, waits, namespaceID)
}

var (
	serverErrorCode = map[task.Outcome]string{task.TimedOut: "TIMED_OUT", task.DeadlineExceeded: "DEADLINE_EXCEEDED"}
	serverMessage   = map[task.Outcome]string{
		task.TimedOut:         "the run did not end within handler_config.timeout",
		task.DeadlineExceeded: "the task's deadline or the step's max_elapsed passed",
	}
)
