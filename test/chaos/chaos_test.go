package chaos_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/pgtest"
)

var (
	stepsFlag   = flag.Int("chaos.steps", 20_000, "steps to submit; a tenth with -short")
	serversFlag = flag.Int("chaos.servers", 4, "server processes")
	workersFlag = flag.Int("chaos.workers", 8, "worker processes")
	spreadFlag  = flag.Duration("chaos.spread", time.Minute, "over which the steps are submitted, and things are broken")
	healFlag    = flag.Duration("chaos.heal", 3*time.Minute, "within which every task must end once nothing is broken any more")
	raceFlag    = flag.Bool("chaos.race", false, "build the servers with the race detector")
	keepFlag    = flag.String("chaos.keep", "", "a directory for the journals and logs, which are kept")
)

// chaosName marks the test's own connections, which are spared.
const chaosName = "chaos"

// TestChaos is the proof of the whole: see the package's comment.
func TestChaos(t *testing.T) {
	x := newChaos(t)
	x.begin()
	x.breakThings()
	x.heal()
	x.stop()
	x.judge()
}

type chaos struct {
	*nursery
	steps    int
	db       *pgtest.DB
	pool     *pgxpool.Pool
	program  string
	servers  []*server
	workers  []*workerSlot
	clients  []*child
	operator *child
	journals []string
	serial   int
	did      map[string]int
}

type server struct {
	*child
	n       int
	address string
}

type workerSlot struct {
	*child
	n int
}

func newChaos(t *testing.T) *chaos {
	t.Helper()
	// Before the processes, so that they are gone when the database goes.
	db := pgtest.New(t)
	x := &chaos{nursery: newNursery(t), db: db, steps: *stepsFlag, did: map[string]int{}}
	if testing.Short() {
		x.steps /= 10
		*spreadFlag /= 5
	}
	if *keepFlag != "" {
		x.dir = *keepFlag
		x.ok(os.MkdirAll(x.dir, 0o700))
	}
	x.program = filepath.Join(x.dir, "tasker")
	build := []string{"build", "-o", x.program}
	if *raceFlag {
		build = append(build, "-race")
	}
	if out, err := exec.Command("go", append(build, "github.com/taskerhq/tasker/cmd/tasker")...).CombinedOutput(); err != nil {
		t.Fatalf("building the server: %v\n%s", err, out)
	}
	config, err := pgxpool.ParseConfig(x.db.ConnString())
	x.ok(err)
	config.ConnConfig.RuntimeParams["application_name"] = chaosName
	x.pool, err = pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), config)
	x.ok(err)
	t.Cleanup(x.pool.Close)
	return x
}

func (x *chaos) ok(err error) {
	if err != nil {
		x.Helper()
		x.Fatal(err)
	}
}

// begin starts everything.
func (x *chaos) begin() {
	for n := range *serversFlag {
		x.servers = append(x.servers, &server{n: n, address: x.freeAddress()})
		x.serve(x.servers[n])
	}
	for _, s := range x.servers {
		x.await(10*time.Second, fmt.Sprintf("server %d to serve", s.n), s.serves)
	}
	for n := range *workersFlag {
		x.workers = append(x.workers, &workerSlot{n: n})
		x.work(x.workers[n])
	}
	const clients = 2
	for n := range clients {
		x.clients = append(x.clients, x.role("client", fmt.Sprintf("client%d", n),
			fmt.Sprintf("CHAOS_STEPS=%d", (x.steps+clients-1)/clients), "CHAOS_SPREAD="+spreadFlag.String()))
	}
	x.operator = x.role("operator", "operator")
}

func (x *chaos) freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	x.ok(err)
	defer func() { _ = l.Close() }() // It was only to learn a free port.
	return l.Addr().String()
}

func (x *chaos) serve(s *server) {
	c, err := x.start(fmt.Sprintf("server%d", s.n), []string{"TASKER_DATABASE_URL=" + x.db.ConnString()}, x.program,
		"serve", "--listen", s.address, "--database-connections", "4", "--database-hot-connections", "4", "--shutdown-timeout", "3s")
	x.ok(err)
	s.child = c
}

// serves tells whether somebody listens.
func (s *server) serves() bool {
	conn, err := net.DialTimeout("tcp", s.address, time.Second)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

func (x *chaos) work(w *workerSlot) {
	w.child = x.role("worker", fmt.Sprintf("worker%d", w.n))
}

// role starts this program in a role, with a journal of its own.
func (x *chaos) role(role, name string, env ...string) *child {
	x.serial++
	journal := filepath.Join(x.dir, fmt.Sprintf("%s-%d.journal", name, x.serial))
	var addresses []string
	for _, s := range x.servers {
		addresses = append(addresses, s.address)
	}
	rand.Shuffle(len(addresses), func(i, k int) { addresses[i], addresses[k] = addresses[k], addresses[i] })
	self, err := os.Executable()
	x.ok(err)
	c, err := x.start(name, append(env, roleEnv+"="+role, "CHAOS_NAME="+name, "CHAOS_JOURNAL="+journal,
		"CHAOS_ADDRESSES="+strings.Join(addresses, ",")), self)
	x.ok(err)
	if role != "operator" {
		x.journals = append(x.journals, journal)
	}
	return c
}

// await waits for a condition.
func (x *chaos) await(within time.Duration, what string, holds func() bool) {
	x.Helper()
	for deadline := time.Now().Add(within); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			x.Fatalf("waited %v for %s", within, what)
		}
	}
}

// breakThings breaks things as long as the clients submit.
func (x *chaos) breakThings() {
	submitting := func() bool {
		for _, c := range x.clients {
			if !c.gone() {
				return true
			}
			if c.err != nil {
				x.Fatalf("%s: %v", c.name, c.err)
			}
		}
		return false
	}
	for deadline := time.Now().Add(*spreadFlag + 2*time.Minute); submitting(); {
		if time.Now().After(deadline) {
			x.Fatal("the clients were not answered for all their tasks")
		}
		x.breakOne()
		time.Sleep(rand.N(700 * time.Millisecond)) // the rhythm of what is broken, not a wait for anything
		x.repair()
	}
}

func (x *chaos) breakOne() {
	s, w := x.servers[rand.IntN(len(x.servers))], x.workers[rand.IntN(len(x.workers))]
	switch n := rand.IntN(20); {
	case n < 4:
		x.did["servers killed"]++
		s.kill()
	case n < 5:
		x.did["servers asked to stop"]++
		s.wanted = true
		s.signal(syscall.SIGTERM)
	case n < 6:
		x.did["servers halted for a while"]++
		x.halt(s.child, rand.N(2*time.Second))
	case n < 12:
		x.did["workers killed"]++
		w.kill()
	case n < 14:
		x.did["workers halted for a while"]++
		x.halt(w.child, rand.N(8*time.Second)) // some for longer than a lease
	default:
		var cut int
		err := x.pool.QueryRow(x.Context(), `select count(pg_terminate_backend(pid)) from (
			select pid from pg_stat_activity
			where datname = current_database() and backend_type = 'client backend' and application_name <> $1
			order by random() limit $2) as victim`, chaosName, 1+rand.IntN(4)).Scan(&cut)
		x.ok(err)
		x.did["connections cut"] += cut
	}
}

// halt stops a process and lets it go on later.
func (x *chaos) halt(c *child, d time.Duration) {
	c.signal(syscall.SIGSTOP)
	time.AfterFunc(d, func() { c.signal(syscall.SIGCONT) })
}

// repair starts what has ended again; none may have ended by itself, but for workers whose name is still taken.
func (x *chaos) repair() {
	for _, s := range x.servers {
		if s.gone() {
			if !s.wanted {
				x.Fatalf("%s ended by itself: %v", s.name, s.err)
			}
			x.serve(s)
		}
	}
	for _, w := range x.workers {
		if w.gone() {
			if !w.wanted {
				x.did["workers that were refused their name"]++
			}
			x.work(w)
		}
	}
	if o := x.operator; o.gone() && !o.wanted {
		x.Fatalf("%s ended by itself: %v", o.name, o.err)
	}
}

// heal waits until every task has ended. Nothing is broken any more, and whatever was is running again.
func (x *chaos) heal() {
	x.operator.wanted = true
	x.operator.signal(syscall.SIGTERM)
	<-x.operator.ended
	x.ok(x.operator.err)
	began := time.Now()
	unended := 0
	x.await(*healFlag, "every task to end (L1)", func() bool {
		x.repair()
		x.ok(x.pool.QueryRow(x.Context(), `select count(*) from task
			where not exists (select from task_end where task_end.task_id = task.task_id)`).Scan(&unended))
		if time.Since(began) > *healFlag-time.Second {
			x.describe()
		}
		time.Sleep(100 * time.Millisecond)
		return unended == 0
	})
	x.Logf("every task had ended %v after the last fault", time.Since(began).Round(time.Millisecond))
}

// describe says how the tasks stand that do not end.
func (x *chaos) describe() {
	rows, err := x.pool.Query(x.Context(), `select task.task_id, place, count(*), min(at)::text from task
		join (select task_id, 'ready' as place, runnable_at as at from ready union all select task_id, 'backoff', due_at from backoff
			union all select task_id, 'lease', until from lease union all select task_id, 'parked', parked_at from parked) standing
			on standing.task_id = task.task_id
		where not exists (select from task_end where task_end.task_id = task.task_id)
		group by 1, 2 order by 1 limit 40`)
	x.ok(err)
	type stand struct {
		ID    int64
		Place string
		N     int
		At    *string
	}
	stands, err := pgx.CollectRows(rows, pgx.RowToStructByPos[stand])
	x.ok(err)
	for _, s := range stands {
		x.Logf("task %d: %d in %s since %s", s.ID, s.N, s.Place, *s.At)
	}
}

// stop ends all processes in order, which they must do by themselves and without a complaint.
func (x *chaos) stop() {
	var all []*child
	for _, w := range x.workers {
		all = append(all, w.child)
	}
	x.end(all)
	all = nil
	for _, s := range x.servers {
		all = append(all, s.child)
	}
	x.end(all)
	for name, body := range x.logs() {
		for _, bad := range []string{"DATA RACE", "panic:", "goroutine 1 ["} {
			if strings.Contains(body, bad) {
				x.Errorf("%s: %s", name, bad)
			}
		}
	}
}

func (x *chaos) end(all []*child) {
	for _, c := range all {
		c.wanted = true
		c.signal(syscall.SIGTERM)
	}
	for _, c := range all {
		x.await(20*time.Second, c.name+" to stop", c.gone)
		if c.err != nil {
			x.Errorf("%s stopped with %v", c.name, c.err)
		}
	}
}

// deadlocksInLog is what the database wrote about them.
func (x *chaos) deadlocksInLog() string {
	var dir string
	x.ok(x.pool.QueryRow(x.Context(), "show data_directory").Scan(&dir))
	body, err := os.ReadFile(filepath.Join(dir, "postgres.log"))
	x.ok(err)
	var out []string
	lines := strings.Split(string(body), "\n")
	for i, line := range lines {
		if strings.Contains(line, "deadlock detected") {
			for _, l := range lines[i:min(i+40, len(lines))] {
				// Statements are long, and their first lines tell which they are.
				if strings.Contains(l, "Process") || strings.HasPrefix(l, "20") || strings.Contains(l, "CONTEXT") {
					out = append(out, l[:min(len(l), 300)])
				}
			}
			out = append(out, "--")
		}
	}
	return strings.Join(out, "\n")
}

// judge has the checker decide.
func (x *chaos) judge() {
	began := time.Now()
	// A worker that was killed before it had opened its journal was given nothing.
	x.journals = slices.DeleteFunc(x.journals, func(path string) bool {
		_, err := os.Stat(path)
		return errors.Is(err, fs.ErrNotExist)
	})
	r, err := history.Check(x.Context(), x.pool, history.Options{Journals: x.journals})
	x.ok(err)
	for i, v := range r.Violations {
		if i < 50 {
			x.Error(v)
		}
	}
	if r.Total > 0 {
		x.Errorf("%d violations", r.Total)
	}
	var deadlocks int
	x.ok(x.pool.QueryRow(x.Context(), "select deadlocks from pg_stat_database where datname = current_database()").Scan(&deadlocks))
	if deadlocks != 0 {
		x.Errorf("%d deadlocks:\n%s", deadlocks, x.deadlocksInLog())
	}
	x.Logf("broken: %v", x.did)
	x.Logf("tasks %d %v, steps %d %v", r.Tasks, r.States, r.Steps, r.Ended)
	x.Logf("dispatches %d, attempts %d, failures %d, lost leases %d, undelivered %d, released %d, reset %d", r.Dispatches, r.Attempts, r.Failures,
		r.LostLeases, r.Undelivered, r.Released, r.Retried)
	x.Logf("reports %d, acknowledged %d, repeated %d, late accepted %d, late kept %d, frames %d, submits acknowledged %d", r.Reports, r.AckedReports,
		r.RepeatedReports, r.LateAccepted, r.LateReports, r.Frames, r.AckedSubmits)
	x.Logf("checked in %v", time.Since(began).Round(time.Millisecond))
	x.Logf("reached chaos_steps=%d", r.Steps)
	if r.Steps < x.steps {
		x.Errorf("%d steps ran, not %d", r.Steps, x.steps)
	}
	for _, what := range []string{"servers killed", "workers killed", "connections cut"} {
		if x.did[what] == 0 && x.steps >= 2000 {
			x.Errorf("%s: none", what)
		}
	}
}
