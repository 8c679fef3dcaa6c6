package store_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// crowd is a database with several stores on it, as that many servers would have, and the database's own clock.
type crowd struct {
	*testing.T
	db      *pgtest.DB
	servers []*store.Store
	ns      int32
	ids     *store.TaskIDs
	lane    int32
	fence   store.SessionFence
	pauses  int32 // up to which number claims know the pauses
}

// crowdName marks the servers' connections.
const crowdName = "crowd"

func newCrowd(t *testing.T, servers int, conns int32) *crowd {
	t.Helper()
	c := &crowd{T: t, db: pgtest.New(t)}
	for range servers {
		config, err := pgxpool.ParseConfig(c.db.ConnString())
		c.ok(err)
		config.MaxConns = conns
		config.ConnConfig.RuntimeParams["application_name"] = crowdName
		s, err := store.Open(context.WithoutCancel(t.Context()), config, conns)
		c.ok(err)
		c.servers = append(c.servers, s)
	}
	t.Cleanup(c.close)
	var err error
	c.ids = &store.TaskIDs{Store: c.servers[0]}
	c.ns, err = c.servers[0].EnsureNamespace(t.Context(), "default")
	c.ok(err)
	c.lane, _, err = c.servers[0].EnsureLane(t.Context(), store.Lane{NamespaceID: c.ns, Handler: "work", Priority: 1})
	c.ok(err)
	c.fence = c.open("worker")
	return c
}

func (c *crowd) open(worker string) store.SessionFence {
	c.Helper()
	id, epoch, _, err := c.servers[0].OpenSession(c.Context(), c.ns, [16]byte{1}, store.Session{
		WorkerID: worker, InstanceID: "1", MaxInFlight: 1_000_000, Handlers: []string{"work"},
	})
	c.ok(err)
	return store.SessionFence{SessionID: id, Epoch: epoch, DeliveryTimeout: time.Hour, Beats: true}
}

func (c *crowd) close() {
	for _, s := range c.servers {
		s.Close()
	}
	c.servers = nil
}

func (c *crowd) ok(err error) {
	if err != nil {
		c.Helper()
		c.Fatal(err)
	}
}

// submit stores tasks of these steps, as many as there are.
func (c *crowd) submit(tasks ...[]task.StepSpec) []task.ID {
	c.Helper()
	ids, err := c.ids.Take(c.Context(), len(tasks))
	c.ok(err)
	batch := make([]store.NewTask, len(tasks))
	for i, steps := range tasks {
		for k := range steps {
			steps[k].Name = fmt.Sprintf("s%d", k+1)
		}
		batch[i] = store.NewTask{
			ID: ids[i], Lanes: slices.Repeat([]int32{c.lane}, len(steps)),
			Submission: &task.Submission{Name: "t", Context: "{}", Digest: []byte{1}, Steps: steps},
		}
	}
	_, _, err = c.servers[0].Submit(c.Context(), c.ns, batch, false)
	c.ok(err)
	return ids
}

func (c *crowd) claimOf(n int) *store.Claim {
	return &store.Claim{
		Sessions: []store.SessionFence{c.fence}, Pauses: c.pauses,
		Lanes: []store.LaneWant{{LaneID: c.lane, Slots: slices.Repeat([]int32{c.fence.SessionID}, n)}},
	}
}

// claim takes up to n steps.
func (c *crowd) claim(s *store.Store, n int) []task.Token {
	grants, _, err := s.Claim(c.Context(), c.ns, c.claimOf(n))
	if err != nil {
		c.Error(err)
	}
	return tokensOf(grants)
}

func tokensOf(grants []store.Grant) []task.Token {
	tokens := make([]task.Token, len(grants))
	for i, g := range grants {
		tokens[i] = g.Step.Token
	}
	return tokens
}

func outcomeOf(token task.Token, outcome task.Outcome) task.Report {
	r := task.Report{Token: token, Outcome: outcome, Digest: sha256.Sum256([]byte(outcome))}
	if outcome == task.Success {
		r.Results = "{}"
	}
	return r
}

// verdictOf records a report as the engine does: in a batch, and beside it when its lease is gone.
func (c *crowd) verdictOf(s *store.Store, r task.Report) (verdict, store.Change) {
	f, err := s.Turn(c.Context(), c.ns, nil, []task.Report{r}, nil)
	if err != nil {
		c.Error(err)
		return "", store.Change{}
	}
	if !f.Answers[0].Late {
		return accepted, f.Change
	}
	a, change, err := s.ReportLate(c.Context(), &r)
	switch {
	case err != nil:
		c.Error(err)
		return "", change
	case a.Refused != nil:
		return verdict(a.Refused.Reason), change
	case a.Reported.AlreadyRecorded:
		return repeated, change
	}
	return accepted, change
}

// settle looks at the tasks that a change names, as a server does after the commit.
func (c *crowd) settle(s *store.Store, change store.Change) {
	for _, id := range change.Settle {
		if _, err := s.Settle(c.Context(), id); err != nil {
			c.Error(err)
		}
	}
}

// refusal tells a refusal's reason; any other error fails the test.
func (c *crowd) refusal(err error) task.Reason {
	var refused *task.Error
	if errors.As(err, &refused) {
		return refused.Reason
	}
	if err != nil {
		c.Error(err)
	}
	return ""
}

// together runs functions at once, as nearly as can be, and waits for them.
func together(fs ...func()) {
	var (
		ready, done sync.WaitGroup
		start       = make(chan struct{})
	)
	for _, f := range fs {
		ready.Add(1)
		done.Go(func() {
			ready.Done()
			<-start
			f()
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
}

func shuffled[T any](s []T) []T {
	s = slices.Clone(s)
	rand.Shuffle(len(s), func(i, k int) { s[i], s[k] = s[k], s[i] })
	return s
}

// count reads a number.
func (c *crowd) count(sql string, args ...any) (n int) {
	c.Helper()
	c.ok(c.db.Pool.QueryRow(c.Context(), sql, args...).Scan(&n))
	return n
}

// closeGate makes the COMMIT of every transaction that writes into a table wait until the gate opens: all else of the
// transaction is done by then, and nobody sees it.
func (c *crowd) closeGate(table string) (open func()) {
	c.Helper()
	c.execute(`create function gate() returns trigger language plpgsql as $$
		begin perform pg_advisory_xact_lock_shared(1); return null; end $$`)
	c.execute(`create constraint trigger gate after insert on ` + table + ` deferrable initially deferred
		for each row execute function gate()`)
	conn := c.db.Conn(c.T)
	_, err := conn.Exec(c.Context(), "select pg_advisory_lock(1)")
	c.ok(err)
	return func() {
		_, err := conn.Exec(c.Context(), "select pg_advisory_unlock(1)")
		c.ok(err)
	}
}

// sound demands what must hold of all tasks at rest. Call it when every change was settled.
func (c *crowd) sound() {
	c.Helper()
	for what, sql := range map[string]string{
		"steps that stand in two places": `select count(*) from (
			select from standing group by task_id, step_no having count(*) > 1) double`,
		"steps that are stuck: every parent ended well, and they stand nowhere (S2, lost wake-up)": `select count(*) from step
			where not exists (select from standing where standing.task_id = step.task_id and standing.step_no = step.step_no)
			and not exists (select from unnest(step.parents) as p (step_no) where not exists (select from step_end e
				where e.task_id = step.task_id and e.step_no = p.step_no and e.state <> 'cancelled'))`,
		"steps that run or ran though a parent did not end well (S2)": `select count(*) from step
			join standing on standing.task_id = step.task_id and standing.step_no = step.step_no and standing.place <> 'cancelled'
			where exists (select from unnest(step.parents) as p (step_no) where not exists (select from step_end e
				where e.task_id = step.task_id and e.step_no = p.step_no and e.state <> 'cancelled'))`,
		"tasks whose recorded end is not their state (S13)": `select count(*)
			from task cross join lateral task_execution_at(array[task.task_id], null) as x
			left join task_end on task_end.task_id = task.task_id
			where coalesce(task_end.state::text, 'none') is distinct from
				case when x.status in ('complete', 'error', 'cancelled') then x.status else 'none' end`,
	} {
		const standing = `with standing as (
			select task_id, step_no, 'ready' as place from ready union all select task_id, step_no, 'backoff' from backoff
			union all select task_id, step_no, 'lease' from lease union all select task_id, step_no, 'parked' from parked
			union all select task_id, step_no, state::text from step_end) `
		if n := c.count(standing + sql); n != 0 {
			c.Errorf("%d %s", n, what)
		}
	}
}

// record has the checker replay what was written down.
func (c *crowd) record() {
	c.Helper()
	found, err := history.Check(c.Context(), c.db.Pool, history.Options{})
	c.ok(err)
	for i, v := range found.Violations {
		if i < 20 {
			c.Error(v)
		}
	}
}

// noDeadlocks closes the servers, which makes their sessions report their statistics, and demands that none met a deadlock.
func (c *crowd) noDeadlocks() {
	c.Helper()
	c.close()
	for c.count("select count(*) from pg_stat_activity where application_name = $1 and datname = current_database()", crowdName) > 0 {
		time.Sleep(time.Millisecond) // until the last one has gone
	}
	if n := c.count("select deadlocks from pg_stat_database where datname = current_database()"); n != 0 {
		c.Errorf("%d deadlocks", n)
	}
}
