package peers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Names of the peers that are compared with each other.
const (
	floorName    = "floor"
	taskerName   = "tasker"
	riverName    = "river"
	dbosName     = "dbos"
	graphileName = "graphile-worker"
	bossName     = "pg-boss"
)

// peer is a queue under test.
type peer struct {
	name string
	// about is what a reader of the table has to know of it.
	about string
	// program is the command that drives it, from the project's root. Nil: the floor, which runs in this process.
	program []string
	// files are what is there once it is installed, from the project's root.
	files []string
	// share of the jobs that the others get, where the same number would take minutes.
	share float64
	// served says that the program works for a server process, which is started for it.
	served bool
	// completed counts the jobs in the database whose completion is stored; or, where the queue deletes those, left counts
	// the others.
	completed, left string
}

// all peers, in the order of the table.
var all = []peer{
	{
		name: floorName,
		about: "the bare statements of a step's life (`bench/floor`), batches of 500, in-process: no queue, and no handler is called; its commits count " +
			"transactions that only read, too, and its rate is that of a window in its midst, where the others' count their start and their end",
	},
	{
		name: taskerName,
		about: "a server process and a worker process that speak gRPC; tasks are submitted by 500, steps come by stream, " +
			"results are reported in batches; two streams of 1,000 steps in flight",
		program: []string{"bin/peers/tasker"}, files: []string{"bin/tasker", "bin/peers/tasker"}, served: true,
		completed: "select count(*) from step_end where state = 'complete'",
	},
	{
		name: riverName,
		about: "in-process, Go; 2,000 workers, fetch cooldown 2 ms, poll interval 20 ms, InsertManyFast of 1,000: the settings of its own " +
			"benchmark",
		program: []string{"bin/peers/river"}, files: []string{"bin/peers/river"},
		completed: "select count(*) from river_job where state = 'completed'",
	},
	{
		name:    dbosName,
		about:   "in-process, Go; a workflow without steps on a queue that polls each 10 ms, concurrency 1,000; 500 enqueued in one transaction",
		program: []string{"bin/peers/dbos"}, files: []string{"bin/peers/dbos"}, share: 0.2,
		completed: "select count(*) from dbos.workflow_status where status = 'SUCCESS'",
	},
	{
		name: graphileName,
		about: "in-process, Node.js; 24 jobs at once, a local queue of 500, completions in batches, addJobs of 1,000: the settings of its own " +
			"page on performance. It deletes what is done",
		program: []string{"node", "bench/peers/node/graphile-worker.mjs"}, files: []string{"bench/peers/node/node_modules/graphile-worker"},
		left: "select count(*) from graphile_worker._private_jobs",
	},
	{
		name: bossName,
		about: "in-process, Node.js; four workers with batches of 5,000 that come back at once while there are any, otherwise after 0.5 s, its least; " +
			"insert of 1,000",
		program: []string{"node", "bench/peers/node/pg-boss.mjs"}, files: []string{"bench/peers/node/node_modules/pg-boss"},
		completed: "select count(*) from pgboss.job where state = 'completed'",
	},
}

// installed says what is missing.
func (p *peer) installed(root string) error {
	for _, file := range p.files {
		if _, err := os.Stat(filepath.Join(root, file)); err != nil {
			return fmt.Errorf("there is no %s", file)
		}
	}
	if len(p.program) > 1 {
		if _, err := exec.LookPath(p.program[0]); err != nil {
			return err
		}
	}
	return nil
}

// jobs is the peer's share of a number of jobs.
func (p *peer) jobs(n int) int {
	if p.share == 0 {
		return n
	}
	return int(float64(n) * p.share)
}
