// Package history is the checker: it decides from the record whether a Tasker kept its promises.
//
// It replays the history table from nothing, step by step, on a model of its own, which knows the contract and shares no
// line with the engine or the store. What the replay says must be what the tables hold, in one snapshot. What workers and
// clients wrote into their own journals must be in the history, and the other way round: a server does not write its own
// alibi.
//
// Each violation names its invariant:
//
//	S1   no lease granted after a step's end
//	S2   no dispatch before all parents are complete or resolved
//	S3   leases of one step never overlap; dispatch numbers rise by one
//	S4   a result is accepted only under the current lease; at most one a dispatch, one ending a step
//	S5   attempts, lost leases and what is free of charge stay within their limits; no budget of time ends a step before it has
//	     run out, the time not counted for which a circuit suspended it
//	S6   never dispatched before it is due; delays follow the policy to the microsecond
//	S7   every acknowledged submit exists; another one exists once or not at all
//	S8   every acknowledged report is in the history
//	S9   one task for each idempotency key
//	S10  a session's confirmed leases never exceed its max_in_flight
//	S11  nothing is dispatched behind a circuit that is open or held, and no attempt charged; while one is half-open no more than
//	     max_probes run, over all servers, and no slot of a probe is leaked; while it recovers no more than a wave runs; never more
//	     than max_in_flight run, nor do more than rate * (T + burst) start in T seconds; it turns only as its policy says
//	S12  nothing is dispatched after a permanent failure
//	S13  a task's state is what its steps make it; readiness is what would be granted
//	S14  the history, replayed, gives the tables
//	S15  nothing is dispatched while its handler, or its namespace, is paused
//
// All of them hold per epoch: an operator's reset begins a new one. A report accepted after its lease was lost, while nobody
// else had been given the step, is legal.
package history

import (
	"context"
	"embed"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed sql/*.sql
var sqlFiles embed.FS

func sqlText(name string) string {
	text, err := sqlFiles.ReadFile("sql/" + name + ".sql")
	if err != nil {
		panic(err) // embedded: a misspelt name
	}
	return string(text)
}

// Options say what to check beside the database.
type Options struct {
	// Journals are the files of all workers and clients of the run. Where one of them holds frames or reports, every
	// accepted report must be in one; where one holds submits, every task must. None: only the database is checked.
	Journals []string
	// Crashed says that PostgreSQL was killed during the run. It may then have forgotten grants that it had acknowledged and not
	// yet written down, which is the one kind of commit that does not wait for that. The step's next dispatch bears the same
	// number and another token, and what is reported under the first comes too late. Without it, such a grant is a violation.
	Crashed bool
	// Sample is how many tasks are asked of the SQL surface, which takes longer than all else. Default 200; negative: all.
	Sample int
}

// Violation is one broken promise.
type Violation struct {
	Invariant string // S1 … S15
	TaskID    int64
	StepID    int64 // 0: of a whole task, or of none
	Dispatch  int   // 0: of none
	Message   string
}

func (v Violation) String() string {
	switch {
	case v.Dispatch > 0:
		return fmt.Sprintf("%s: step %d, dispatch %d: %s", v.Invariant, v.StepID, v.Dispatch, v.Message)
	case v.StepID > 0:
		return fmt.Sprintf("%s: step %d: %s", v.Invariant, v.StepID, v.Message)
	case v.TaskID > 0:
		return fmt.Sprintf("%s: task %d: %s", v.Invariant, v.TaskID, v.Message)
	}
	return v.Invariant + ": " + v.Message
}

// maxListed bounds Report.Violations: a broken server breaks everything.
const maxListed = 1000

// Report is what a check found.
type Report struct {
	Circuits int // that somebody has used
	Probes   int // dispatches while their circuit was half-open
	// Of dispatches behind circuits: those that were lost while they probed, that took the last place of max_in_flight, and that
	// started ahead of an even pace, within the burst of their rate.
	LostProbes, Full, Paced int

	Tasks  int            // that were submitted and are stored
	States map[string]int // tasks by state
	Steps  int
	Ended  map[string]int // steps by current_state

	Dispatches   int // leases granted
	Attempts     int // runs that count
	Failures     int // runs that failed, counted or not
	Uncounted    int // of them, not counted, as they asked for
	LostLeases   int
	OutOfTime    int // ends of steps by a budget of time
	PastDeadline int // successes that were dispatched after their task's deadline had passed by the clock
	PastElapsed  int // and after their max_elapsed had
	Undelivered  int // dispatches that were never confirmed
	Released     int // dispatches handed back
	Retried      int // resets by operators
	LateAccepted int // reports accepted after their lease was lost
	LateReports  int // reports kept as evidence
	Early        int // dispatches before their step was due: each is a violation too
	Skipped      int // tasks whose history retention has dropped

	Frames          int // steps that workers received, by their journals
	Forgotten       int // of them, granted and forgotten by a PostgreSQL that was killed
	Reports         int // reports that workers sent
	AckedReports    int // of them, acknowledged as recorded
	RepeatedReports int // of them, answered as recorded before
	AckedSubmits    int // submits that clients were answered

	Violations []Violation // the first 1000
	Total      int         // how many there are
}

// Holds tells whether nothing was violated.
func (r *Report) Holds() bool { return r.Total == 0 }

func (r *Report) add(v Violation) {
	if r.Total++; r.Total <= maxListed {
		r.Violations = append(r.Violations, v)
	}
}

// DB is a *pgxpool.Pool or a *pgx.Conn.
type DB interface {
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// Check decides the invariants. The error is about checking itself; what was found is in the report.
func Check(ctx context.Context, db DB, o Options) (Report, error) {
	c := &checker{
		r:          &Report{States: map[string]int{}, Ended: map[string]int{}},
		heldBy:     map[int32][]span{},
		behind:     map[int32][]*run{},
		circuits:   map[int32]*circuitModel{},
		rooms:      map[int32]int{},
		sampleSize: o.Sample,
		crashed:    o.Crashed,
	}
	if c.sampleSize == 0 {
		c.sampleSize = 200
	}
	if err := c.readJournals(o.Journals); err != nil {
		return Report{}, err
	}
	// One snapshot for all, history and tables alike.
	tx, err := db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return Report{}, fmt.Errorf("checking the history: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if err := c.check(ctx, tx); err != nil {
		return Report{}, fmt.Errorf("checking the history: %w", err)
	}
	return *c.r, nil
}

// checker is one run of Check.
type checker struct {
	r          *Report
	now        time.Time // the snapshot's
	journals   journals
	heldBy     map[int32][]span // confirmed leases by session
	behind     map[int32][]*run // dispatches of steps by circuit
	circuits   map[int32]*circuitModel
	endings    []ending      // of steps, by budgets of time
	rooms      map[int32]int // of circuits that bound what goes out: how much may go now, by the database
	dropped    []idRange     // tasks that retention dropped
	daysGone   bool          // history that retention dropped
	sampleSize int
	crashed    bool
	sampled    map[int64]*taskModel
	keys       map[submitKey]int64
}

type idRange struct{ from, to int64 }

func (c *checker) check(ctx context.Context, tx pgx.Tx) error {
	// Sorting the whole history is what takes longest; plans for single look-ups do not help.
	if _, err := tx.Exec(ctx, "set local work_mem = '256MB'; set local jit = off; set local timezone = 'UTC'"); err != nil {
		return err
	}
	if err := tx.QueryRow(ctx, "select now()").Scan(&c.now); err != nil {
		return err
	}
	for _, step := range []func(context.Context, pgx.Tx) error{
		c.readDropped, c.readKeys, c.checkRecords, c.checkTasks, c.checkCircuits, c.checkPauses, c.checkSurface, c.checkSessions, c.checkLateReports,
	} {
		if err := step(ctx, tx); err != nil {
			return err
		}
	}
	c.checkBudgets()
	c.checkJournals()
	return nil
}

func (c *checker) readDropped(ctx context.Context, tx pgx.Tx) error {
	var first, end *int64
	rows, _ := tx.Query(ctx, sqlText("dropped"))
	_, err := pgx.ForEachRow(rows, []any{&first, &end}, func() error {
		if first == nil {
			c.daysGone = true
			return nil
		}
		c.dropped = append(c.dropped, idRange{*first, *end})
		return nil
	})
	return err
}

func (c *checker) isDropped(taskID int64) bool {
	return slices.ContainsFunc(c.dropped, func(r idRange) bool { return r.from <= taskID && taskID < r.to })
}

// checkRecords looks at what only whole records of the history show.
func (c *checker) checkRecords(ctx context.Context, tx pgx.Tx) error {
	var id int64
	rows, _ := tx.Query(ctx, sqlText("ragged"))
	_, err := pgx.ForEachRow(rows, []any{&id}, func() error {
		c.r.add(Violation{Invariant: "S14", Message: fmt.Sprintf("record %d: its arrays differ in length", id)})
		return nil
	})
	if err != nil {
		return err
	}
	var recordedAt, anchor time.Time
	rows, _ = tx.Query(ctx, sqlText("anchors"))
	_, err = pgx.ForEachRow(rows, []any{&id, &recordedAt, &anchor}, func() error {
		c.r.add(Violation{Invariant: "S6", Message: fmt.Sprintf("record %d: its delays start at %s, it was made at %s", id,
			anchor.Format(time.RFC3339Nano), recordedAt.Format(time.RFC3339Nano))})
		return nil
	})
	return err
}

// checkLateReports compares the evidence with the history of it.
func (c *checker) checkLateReports(ctx context.Context, tx pgx.Tx) error {
	if c.daysGone {
		return nil
	}
	var (
		taskID           int64
		stepNo, dispatch int
		isTold           bool
	)
	rows, _ := tx.Query(ctx, sqlText("late_reports"))
	_, err := pgx.ForEachRow(rows, []any{&taskID, &stepNo, &dispatch, &isTold}, func() error {
		if isTold && (c.isDropped(taskID) || c.journals.purged[taskID]) {
			return nil
		}
		where := "in the history only"
		if !isTold {
			where = "in its table only"
		}
		c.r.add(Violation{Invariant: "S14", TaskID: taskID, StepID: taskID + int64(stepNo), Dispatch: dispatch, Message: "a late report stands " + where})
		return nil
	})
	return err
}
