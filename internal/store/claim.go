package store

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Claim asks for leases in lanes of one namespace. A lane stands in it once, and so does a session.
type Claim struct {
	Lanes    []LaneWant
	Sessions []SessionFence // sorted by SessionID: the lock order
}

// LaneWant is one lane's share of a claim: up to len(Slots) steps, the k-th for the session Slots[k].
type LaneWant struct {
	LaneID int32
	After  int64 // the lane's cursor: rows up to it are left alone; 0 looks from the beginning
	Slots  []int32
}

// SessionFence is a session that may be granted to, as this server knows it. One that has moved to another server, was
// drained or closed has another epoch or a mark by now, and is granted nothing.
type SessionFence struct {
	SessionID       int32
	Epoch           int32
	DeliveryTimeout time.Duration
	Beats           bool // its worker announced heartbeats
}

// Grant is one lease.
type Grant struct {
	LaneID    int32
	Seq       *int64 // where a ready step stood; nil for one that was backing off
	SessionID int32
	// Step lacks what the lane says: namespace and handler.
	Step *task.ReadyStep
	// Parents is how many parents the step has. Results of more than MaxInlineParents do not ride along.
	Parents int
}

// MaxInlineParents is how many parents' results a claim reads along.
const MaxInlineParents = 16

// Claim grants leases in a transaction of its own. Its commit may be forgotten by a crash of the database, which is no
// more than an expired lease: the steps then stand where they stood.
func (s *Store) Claim(ctx context.Context, namespaceID int32, claim *Claim) (grants []Grant, err error) {
	err = s.inPipeline(ctx, func(p *pipeline) error {
		grants = grants[:0]
		b := &pgx.Batch{}
		s.queueClaim(b, namespaceID, claim, &grants)
		return p.commit(ctx, b, true)
	})
	return grants, err
}

func (s *Store) queueClaim(b *pgx.Batch, namespaceID int32, claim *Claim, grants *[]Grant) {
	var (
		lanes, wanted, offsets, slots []int32
		after                         []int64
		sessions, epochs              []int32
		delivery                      []time.Duration
		beats                         []bool
	)
	for _, l := range claim.Lanes {
		lanes, after = append(lanes, l.LaneID), append(after, l.After)
		wanted, offsets = append(wanted, int32(len(l.Slots))), append(offsets, int32(len(slots))) //nolint:gosec // both far below 2³¹
		slots = append(slots, l.Slots...)
	}
	for _, f := range claim.Sessions {
		sessions, epochs = append(sessions, f.SessionID), append(epochs, f.Epoch)
		delivery, beats = append(delivery, f.DeliveryTimeout), append(beats, f.Beats)
	}
	tokens := nonces(len(slots))
	each(b, "claim", func(rows pgx.Rows) error {
		g, err := scanGrant(rows, namespaceID)
		if err == nil {
			*grants = append(*grants, g)
		}
		return err
	}, s.at(), lanes, after, wanted, offsets, slots, tokens, sessions, epochs, delivery, beats, namespaceID)
}

// nonces draws n × 128 random bits.
func nonces(n int) [][16]byte {
	tokens := make([][16]byte, n)
	for i := range tokens {
		_, _ = rand.Read(tokens[i][:]) // never fails
	}
	return tokens
}

func scanGrant(rows pgx.Rows, namespaceID int32) (Grant, error) {
	var (
		g                                          Grant
		r                                          task.ReadyStep
		nonce                                      [16]byte
		taskID                                     int64
		attempts, dispatch                         int
		runTimeout                                 *time.Duration
		handlerConfig, trace, checkpoint           *string
		parents                                    *int
		names, results                             []string
		failedDispatch, failedAttempt, httpStatus  *int
		failedOutcome                              *string
		failedAt                                   *time.Time
		code, message, class, stackTrace, detailed *string
	)
	err := rows.Scan(&g.LaneID, &g.Seq, &g.SessionID, &nonce, &taskID, &r.StepNo, &attempts, &dispatch, &r.GrantedAt,
		&r.DeliveryTimeout, &r.LeaseDuration, &runTimeout, &r.Deadline,
		&r.StepName, &r.RetryLimit, &handlerConfig, &r.TaskName, &r.Context, &r.Labels, &trace,
		&parents, &names, &results, &checkpoint,
		&failedDispatch, &failedOutcome, &failedAttempt, &failedAt, &code, &message, &class, &httpStatus, &stackTrace, &detailed)
	if err != nil {
		return Grant{}, err
	}
	r.Task = task.ID(taskID)
	r.Token = task.Token{NamespaceID: namespaceID, Step: r.Task.Step(r.StepNo), Dispatch: int32(dispatch), SessionID: g.SessionID, Nonce: nonce} //nolint:gosec // an int column
	r.Attempt, r.Dispatch = attempts+1, dispatch
	r.LeaseExpiresAt = r.GrantedAt.Add(r.DeliveryTimeout)
	r.HeartbeatBy = r.LeaseDuration / 3
	r.RunTimeout = deref(runTimeout)
	r.HandlerConfig, r.TraceContext, r.Checkpoint = orEmptyObject(handlerConfig), deref(trace), deref(checkpoint)
	g.Parents = deref(parents)
	for i := range names {
		r.Dependencies = append(r.Dependencies, task.DependencyResult{Name: names[i], Results: results[i]})
	}
	if failedDispatch != nil {
		r.PreviousFailure = &task.PreviousFailure{
			Failure: task.Failure{
				ErrorCode: deref(code), Message: deref(message), ErrorClass: deref(class), HTTPStatus: deref(httpStatus),
				StackTrace: deref(stackTrace), Details: deref(detailed),
			},
			Outcome: task.Outcome(deref(failedOutcome)), Dispatch: *failedDispatch, Attempt: deref(failedAttempt), EndedAt: deref(failedAt),
		}
	}
	g.Step = &r
	return g, nil
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// orNil is the argument for a column whose NULL means "none".
func orNil(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func orEmptyObject(s *string) string {
	if s == nil {
		return "{}"
	}
	return *s
}

// DependencyResults reads results of a step's parents, in the order of their numbers: those after afterNo.
func (s *Store) DependencyResults(ctx context.Context, step task.StepID, afterNo, limit int) ([]NumberedResult, error) {
	rows, err := s.Hot.Query(ctx, sqlText("dependency_results"), int64(step.Task()), step.No(), afterNo, limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[NumberedResult])
}

// NumberedResult is a parent's results with the parent's number, by which pages go on.
type NumberedResult struct {
	StepNo  int
	Name    string
	Results string
}
