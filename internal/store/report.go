package store

import (
	"bytes"
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Answer is what became of one report of a batch: exactly one of its fields is set.
type Answer struct {
	Reported *task.Reported
	Refused  *task.Error
	// Late: the token's lease is gone. ReportLate decides it, in a transaction of its own.
	Late bool
}

// Flushed is the outcome of one Turn.
type Flushed struct {
	Submitted []SubmitAnswer // in the order of the tasks
	Answers   []Answer       // in the order of the reports
	Grants    []Grant
	Gates     []Gate // of the circuits that the transaction touched
	Change    Change

	changedCircuits map[int32]string // id → name
}

// stepKey names a step's row.
type stepKey struct {
	taskID int64
	stepNo int
}

// Turn stores tasks of one namespace, as Submit does, and records reports of it in one transaction and, unless tasks have
// idempotency keys, one round trip. In the same one it grants what claim asks for: the tasks' roots and steps that the reports
// woke included. Reports must differ in their tokens. All of it is durable when Turn returns without an error; reports whose
// lease is gone are answered Late.
func (s *Store) Turn(ctx context.Context, namespaceID int32, tasks []NewTask, reports []task.Report, claim *Claim) (f Flushed, err error) {
	if len(tasks) == 0 && len(reports) == 0 {
		f.Grants, f.Gates, err = s.Claim(ctx, namespaceID, claim)
		return f, err
	}
	order := make([]int, len(reports))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(reports[a].Token.Step, reports[b].Token.Step) })

	var successes, failures []int
	for _, i := range order {
		if reports[i].Outcome == task.Success {
			successes = append(successes, i)
		} else {
			failures = append(failures, i)
		}
	}
	use := reportedCircuits(reports, claim)
	tries := 0
	err = s.inPartitions(ctx, tasks, func(p *pipeline) error {
		f = Flushed{Submitted: make([]SubmitAnswer, len(tasks)), Answers: make([]Answer, len(reports))}
		fresh, _, err := s.claimKeys(ctx, p, namespaceID, tasks, f.Submitted)
		if err != nil {
			return err
		}
		b := &pgx.Batch{}
		if len(use) > 0 {
			s.lockCircuits(b, use)
		}
		var createdAt time.Time
		if len(fresh) > 0 {
			s.queueSubmit(b, namespaceID, fresh, false, &createdAt, &f.Change)
		}
		// Each of the two statements locks in order, but the two together only if all is locked before. And where heartbeats
		// move the leases, a statement that waits for one wakes up with an old snapshot: locked before, they are all in the
		// snapshot of the next statement, and no try after the first is lost to a heartbeat. Circuits are charged with what
		// stands in the leases, before they are concluded.
		charged := len(use) > 0 && chargesAny(reports)
		if tries++; tries > 1 || len(successes) > 0 && len(failures) > 0 || charged {
			lockAll(b, reports, order)
		}
		if charged {
			s.queueReportCharges(b, use, reports, order, &f)
		}
		s.queueComplete(b, namespaceID, reports, successes, &f)
		s.queueFail(b, namespaceID, reports, failures, &f)
		if claim != nil && len(claim.Lanes) > 0 {
			s.queueClaim(b, namespaceID, claim, &f.Grants)
		}
		if len(use) > 0 {
			s.queueGates(b, use, &f.Gates)
		}
		if err := p.commit(ctx, b, false); err != nil {
			return err
		}
		stamp(f.Submitted, createdAt)
		return nil
	})
	for i := range f.Answers {
		f.Answers[i].Late = f.Answers[i].Reported == nil
	}
	f.tellCircuits(reports)
	return f, err
}

// lockAll queues lock_leases.sql for reports, in an order that is sorted by step.
func lockAll(b *pgx.Batch, reports []task.Report, order []int) {
	ids, nos, tokens := make([]int64, len(order)), make([]int32, len(order)), make([][16]byte, len(order))
	for n, i := range order {
		step := reports[i].Token.Step
		ids[n], nos[n], tokens[n] = int64(step.Task()), int32(step.No()), reports[i].Token.Nonce //nolint:gosec // ≤ 10,000
	}
	b.Queue(sqlText("lock_leases"), ids, nos, tokens)
}

func (s *Store) queueComplete(b *pgx.Batch, namespaceID int32, reports []task.Report, which []int, f *Flushed) {
	if len(which) == 0 {
		return
	}
	n := len(which)
	ids, nos, tokens, digests, results := make([]int64, n), make([]int32, n), make([][16]byte, n), make([][]byte, n), make([]string, n)
	at := make(map[[16]byte]int, n)
	for k, i := range which {
		r := &reports[i]
		ids[k], nos[k], tokens[k] = int64(r.Token.Step.Task()), int32(r.Token.Step.No()), r.Token.Nonce //nolint:gosec // ≤ 10,000
		digests[k], results[k] = r.Digest[:16], r.Results
		at[r.Token.Nonce] = i
	}
	eachRow(b, "complete", func(c *columns) {
		what := c.text("")
		id, token, laneID, seq, count := task.ID(c.int64()), c.uuid(), c.int32(), c.int64(), c.int()
		switch what {
		case "":
			i := at[token]
			f.Answers[i].Reported = &task.Reported{
				Step: reports[i].Token.Step, State: task.StepComplete, RetryLimit: count, RecordedAt: c.time(), Attempts: c.int(),
				Dispatches: c.int(), LostLeases: c.int(), Epoch: c.int(),
			}
			f.Change.Freed = append(f.Change.Freed, reports[i].Token)
			f.Change.Tasks = append(f.Change.Tasks, reports[i].Token.Step.Task())
		case "settle":
			f.Change.Settle = append(f.Change.Settle, id)
		case "woken":
			f.Change.Wake = append(f.Change.Wake, Wake{LaneID: laneID, Seq: seq, Count: count})
		}
	}, slices.Concat([]any{s.at(), ids}, alike(nos), []any{tokens}, alikeBy(digests, bytes.Equal), alike(results), []any{namespaceID})...)
}

// failure is one failed dispatch as fail.sql takes it.
type failure struct {
	task.Failure
	token   task.Token
	outcome task.Outcome
	digest  []byte // nil: concluded by the server
	skip    bool
	hint    task.Hint
}

func (s *Store) queueFail(b *pgx.Batch, namespaceID int32, reports []task.Report, which []int, f *Flushed) {
	if len(which) == 0 {
		return
	}
	failures := make([]failure, len(which))
	at := make(map[[16]byte]int, len(which))
	for k, i := range which {
		r := &reports[i]
		failures[k] = failure{Failure: r.Failure, token: r.Token, outcome: r.Outcome, digest: r.Digest[:16], skip: r.Skip, hint: r.Hint}
		at[r.Token.Nonce] = i
	}
	s.queueFailures(b, namespaceID, failures, &f.Change, func(token [16]byte, r *task.Reported) {
		i := at[token]
		f.Answers[i].Reported = r
		f.Change.Freed = append(f.Change.Freed, reports[i].Token)
	})
}

// queueFailures queues fail.sql for failures that are sorted by step.
func (s *Store) queueFailures(b *pgx.Batch, namespaceID int32, failures []failure, change *Change, concluded func(token [16]byte, r *task.Reported)) {
	n := len(failures)
	var (
		ids                                            = make([]int64, n)
		nos                                            = make([]int32, n)
		tokens                                         = make([][16]byte, n)
		outcomes, sources                              = make([]string, n), make([]*string, n)
		digests                                        = make([][]byte, n)
		skips                                          = make([]bool, n)
		after                                          = make([]*time.Duration, n)
		at                                             = make([]*time.Time, n)
		jitter                                         = make([]float64, n)
		codes, messages, classes, stackTraces, details = make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n), make([]*string, n)
		statuses                                       = make([]*int32, n)
	)
	for i, x := range failures {
		ids[i], nos[i], tokens[i] = int64(x.token.Step.Task()), int32(x.token.Step.No()), x.token.Nonce //nolint:gosec // ≤ 10,000
		outcomes[i], digests[i], skips[i] = string(x.outcome), x.digest, x.skip
		after[i], at[i], sources[i] = x.hint.After, x.hint.At, orNil(string(x.hint.Source))
		jitter[i] = rand.Float64() //nolint:gosec // jitter, not a secret
		codes[i], messages[i], classes[i] = orNil(x.ErrorCode), orNil(x.Message), orNil(x.ErrorClass)
		stackTraces[i], details[i] = orNil(x.StackTrace), orNil(x.Details)
		if x.HTTPStatus != 0 {
			status := int32(x.HTTPStatus) //nolint:gosec // 100 … 599
			statuses[i] = &status
		}
	}
	each(b, "fail", func(rows pgx.Rows) error {
		var (
			moved        int
			taskID       int64
			stepNo       int
			token        [16]byte
			laneID       int32
			failuresNow  int
			park, source *string
			code         *string
			r            task.Reported
		)
		if err := rows.Scan(&moved, &taskID, &stepNo, &token, &laneID, &r.Dispatches, &r.Epoch, &r.Attempts, &failuresNow, &r.RetryLimit,
			&r.LostLeases, &park, &r.RecordedAt, &r.NextRetryAt, &r.AppliedDelay, &source, &r.DelayClamped, &code); err != nil {
			return err
		}
		r.Step, r.State, r.Parked = task.ID(taskID).Step(stepNo), task.StepError, park != nil
		r.ParkedReason = deref(park)
		r.DelaySource, r.ErrorCode = task.DelaySource(deref(source)), deref(code)
		r.RetryEligible = !r.Parked && !r.NextRetryAt.After(r.RecordedAt)
		change.Tasks = append(change.Tasks, task.ID(taskID))
		if r.Parked {
			change.Settle = append(change.Settle, task.ID(taskID))
		} else {
			change.Wake = append(change.Wake, Wake{LaneID: laneID, DueAt: r.NextRetryAt})
		}
		concluded(token, &r)
		return nil
	}, s.at(), ids, nos, outcomes, digests, skips, after, at, sources, jitter, codes, messages, classes, statuses, stackTraces, details, namespaceID, tokens)
}
