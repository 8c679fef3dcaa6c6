package store

import (
	"context"
	"crypto/rand"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Claim asks for leases in lanes of one namespace. A lane stands in it once, and so does a session.
type Claim struct {
	Lanes    []LaneWant
	Sessions []SessionFence // sorted by SessionID: the lock order
	Circuits []CircuitWant  // of the lanes that have one, each once
	// Pauses is the Revision of the namespace's pauses by which Lanes were chosen. Where a handler was paused since, nothing is
	// granted.
	Pauses int32
}

// LaneWant is one lane's share of a claim: up to len(Slots) steps, the k-th for the session Slots[k].
type LaneWant struct {
	LaneID int32
	After  int64 // the lane's cursor: rows up to it are left alone; 0 looks from the beginning
	Slots  []int32
	// CircuitID is the lane's circuit; 0: none. It stands in the claim's Circuits.
	CircuitID int32
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
func (s *Store) Claim(ctx context.Context, namespaceID int32, claim *Claim) (grants []Grant, gates []Gate, err error) {
	err = s.inPipeline(ctx, func(p *pipeline) error {
		grants, gates = grants[:0], gates[:0]
		b := &pgx.Batch{}
		use := claim.circuitUse()
		if len(use) > 0 {
			s.lockCircuits(b, use)
		}
		s.queueClaim(b, namespaceID, claim, &grants)
		if len(use) > 0 {
			s.queueGates(b, use, &gates)
		}
		return p.commit(ctx, b, true)
	})
	return grants, gates, err
}

func (c *Claim) circuitUse() circuitUse {
	use := make(circuitUse, len(c.Circuits))
	for _, w := range c.Circuits {
		use.add(w.CircuitID, w.Exclusive)
	}
	return use
}

func (s *Store) queueClaim(b *pgx.Batch, namespaceID int32, claim *Claim, grants *[]Grant) {
	var (
		lanes, wanted, offsets, slots []int32
		laneCircuits                  []int32
		circuits, takers, paced       []int32
		exclusive                     []bool
		after                         []int64
		sessions, epochs              []int32
		delivery                      []time.Duration
		beats                         []bool
	)
	for _, l := range claim.Lanes {
		lanes, after = append(lanes, l.LaneID), append(after, l.After)
		wanted, offsets = append(wanted, int32(len(l.Slots))), append(offsets, int32(len(slots))) //nolint:gosec // both far below 2³¹
		slots, laneCircuits = append(slots, l.Slots...), append(laneCircuits, l.CircuitID)
	}
	for _, f := range claim.Sessions {
		sessions, epochs = append(sessions, f.SessionID), append(epochs, f.Epoch)
		delivery, beats = append(delivery, f.DeliveryTimeout), append(beats, f.Beats)
	}
	for _, w := range claim.Circuits {
		circuits, exclusive, takers = append(circuits, w.CircuitID), append(exclusive, w.Exclusive), append(takers, w.LaneID)
		if w.Exclusive {
			paced = append(paced, w.CircuitID)
		}
	}
	tokens := nonces(len(slots))
	last := &task.ReadyStep{}
	eachRow(b, "claim", func(c *columns) {
		slot := c.int32() // from 1
		lane, _ := slices.BinarySearch(offsets, slot)
		fence, _ := slices.BinarySearch(sessions, slots[slot-1])
		g := readGrant(c, namespaceID, &claim.Lanes[lane-1], &claim.Sessions[fence], tokens[slot-1], last)
		*grants, last = append(*grants, g), g.Step
	}, s.at(), lanes, after, wanted, offsets, slots, tokens, sessions, epochs, delivery, beats, namespaceID,
		circuits, exclusive, takers, laneCircuits, claim.Pauses)
	if len(paced) > 0 {
		b.Queue(sqlText("pace_circuits"), s.at(), paced)
	}
}

// nonces draws n × 128 random bits.
func nonces(n int) [][16]byte {
	bits := make([]byte, 16*n)
	_, _ = rand.Read(bits) // never fails
	tokens := make([][16]byte, n)
	for i := range tokens {
		copy(tokens[i][:], bits[16*i:])
	}
	return tokens
}

// readGrant reads a row of claim.sql after the slot, of which the lane, the session and the token are. last is the step of the
// row before, with which it may share its texts.
func readGrant(c *columns, namespaceID int32, lane *LaneWant, session *SessionFence, token [16]byte, last *task.ReadyStep) (g Grant) {
	r := &task.ReadyStep{}
	g.Step, g.LaneID, g.SessionID = r, lane.LaneID, session.SessionID
	if c.isNull() {
		c.at++
	} else {
		seq := c.int64()
		g.Seq = &seq
	}
	r.Token = task.Token{NamespaceID: namespaceID, SessionID: g.SessionID, CircuitID: lane.CircuitID, Nonce: token}
	r.Task, r.StepNo = task.ID(c.int64()), c.int()
	r.Attempt, r.Dispatch = c.int()+1, c.int()
	r.Token.Step, r.Token.Dispatch = r.Task.Step(r.StepNo), int32(r.Dispatch) //nolint:gosec // an int column
	r.GrantedAt = c.time()
	r.DeliveryTimeout, r.LeaseDuration, r.RunTimeout, r.Deadline = session.DeliveryTimeout, c.duration(), c.duration(), c.timeOrNil()
	r.LeaseExpiresAt = r.GrantedAt.Add(r.DeliveryTimeout)
	r.HeartbeatBy = r.LeaseDuration / 3
	r.StepName, r.RetryLimit = c.text(last.StepName), c.int()
	r.HandlerConfig = orEmptyObject(c.text(last.HandlerConfig))
	r.TaskName, r.Context, r.Labels, r.TraceContext = c.text(last.TaskName), c.text(last.Context), c.texts(), c.text(last.TraceContext)
	r.Probe = c.bool()
	g.Parents = c.int()
	names, results := c.texts(), c.texts()
	for i := range names {
		r.Dependencies = append(r.Dependencies, task.DependencyResult{Name: names[i], Results: results[i]})
	}
	r.Checkpoint = c.text("")
	if !c.isNull() {
		p := &task.PreviousFailure{Dispatch: c.int(), Outcome: task.Outcome(c.text("")), Attempt: c.int(), EndedAt: c.time()}
		p.ErrorCode, p.Message, p.ErrorClass, p.HTTPStatus = c.text(""), c.text(""), c.text(""), c.int()
		p.StackTrace, p.Details = c.text(""), c.text("")
		r.PreviousFailure = p
	}
	return g
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

func orEmptyObject(s string) string {
	if s == "" {
		return "{}"
	}
	return s
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
