package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/taskerhq/tasker/examples/registration"
	"github.com/taskerhq/tasker/internal/history"
)

// starter starts processes that end with this one, however it ends: the kernel kills them when the thread that started
// them is gone, so one thread starts them all and lives as long as the demo.
type starter struct {
	jobs chan func()
}

func newStarter() *starter {
	s := &starter{jobs: make(chan func())}
	go func() {
		// Never unlocked: a thread whose goroutine ends locked is thrown away, and by then nothing is left to be killed.
		runtime.LockOSThread()
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

func (s *starter) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = dieWithParent()
	done := make(chan error)
	s.jobs <- func() { done <- cmd.Start() }
	return <-done
}

func (s *starter) close() { close(s.jobs) }

// child is a process of the demo. Its standard error goes to a file.
type child struct {
	name string
	cmd  *exec.Cmd
	log  string
	// ended is closed when the process has, and err says how.
	ended chan struct{}
	err   error
	// wanted is set before we kill or stop it.
	wanted bool
}

// launch starts a process. Its standard output goes to stdout.
func (d *demo) launch(name string, stdout io.Writer, program string, args ...string) (*child, error) {
	c := &child{name: name, log: filepath.Join(d.dir, name+".log"), ended: make(chan struct{})}
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	// The process has its own.
	defer log.Close() //nolint:errcheck // Nothing was written here.
	c.cmd = exec.Command(program, args...)
	c.cmd.Stdout, c.cmd.Stderr = stdout, log
	c.cmd.Env = append(os.Environ(), "PYTHONPATH="+d.stubs, "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1")
	// What holds a pipe open after the process has ended is not waited for.
	c.cmd.WaitDelay = time.Second
	if err := d.starter.start(c.cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// kill is kill -9. It returns when the process is gone.
func (c *child) kill() {
	c.wanted = true
	_ = c.cmd.Process.Kill() // It may be gone already.
	<-c.ended
}

// stop asks the process to end, and waits for that. It fails when the process does not like to, or ended badly.
func (c *child) stop(ctx context.Context) error {
	c.wanted = true
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", c.name, err)
	}
	select {
	case <-c.ended:
	case <-ctx.Done():
		return fmt.Errorf("%s does not stop: %w", c.name, context.Cause(ctx))
	}
	if c.err != nil {
		return fmt.Errorf("%s stopped with %w", c.name, c.err)
	}
	return nil
}

var errEarly = errors.New("without an error, too early")

// gone says that a process ended that was not to.
func (c *child) gone() error {
	select {
	case <-c.ended:
		if !c.wanted {
			return fmt.Errorf("%s (process %d) ended by itself: %w", c.name, c.pid(), cmp.Or(c.err, errEarly))
		}
	default:
	}
	return nil
}

// tail is the end of the process's log.
func (c *child) tail() string {
	const lines = 8
	body, err := os.ReadFile(c.log)
	if err != nil || len(bytes.TrimSpace(body)) == 0 {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(body)), "\n")
	return "  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}

// lastWords are the ends of all logs, for when the demo cannot go on.
func (d *demo) lastWords() string {
	var out strings.Builder
	children := make([]*child, 0, len(d.workers)+1)
	if d.server != nil {
		children = append(children, d.server.child)
	}
	for _, worker := range d.workers {
		children = append(children, worker.child)
	}
	for _, c := range children {
		if tail := c.tail(); tail != "" {
			fmt.Fprintf(&out, "the last of what %s said:\n%s\n", c.name, tail)
		}
	}
	return strings.TrimRight(out.String(), "\n")
}

// demoServer is a `tasker serve` on the demo's data directory.
type demoServer struct {
	*child
	address string
}

// startServer starts a server and waits until it is ready.
func (d *demo) startServer(ctx context.Context, listen string) (*demoServer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting the server: %w", err)
	}
	defer out.Close() //nolint:errcheck // It was only read.
	c, err := d.launch("server", in, self, "serve", "--listen", listen, "--data-dir", d.dataDir())
	_ = in.Close() // The server has its own.
	if err != nil {
		return nil, err
	}
	ready := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		ready <- strings.TrimSpace(line)
	}()
	select {
	case line := <-ready:
		address, ok := strings.CutPrefix(line, "serving on ")
		if !ok {
			c.kill()
			return nil, fmt.Errorf("the server could not start\n%s", c.tail())
		}
		return &demoServer{child: c, address: address}, nil
	case <-ctx.Done():
		c.kill()
		return nil, fmt.Errorf("the server is not ready\n%s", c.tail())
	}
}

func (d *demo) dataDir() string { return filepath.Join(d.dir, "data") }

// workerPlan is a worker as the demo wants it.
type workerPlan struct {
	name   string
	python bool
	steps  []string
	// side is the side of the outage that it works on. Nil: it works on the registrations.
	side *outageSide
}

// demoWorkers share the steps so that each can be done by two of them, in two languages where it matters.
var demoWorkers = []workerPlan{
	{name: "go-1", steps: []string{registration.CreateUserAccount, registration.SetPreferences}},
	{name: "go-2", steps: []string{registration.CreateUserAccount, registration.SetupBilling, registration.SetPreferences, registration.SendBillingNotification}},
	{name: "python-1", python: true, steps: []string{registration.SetupBilling, registration.SendBillingNotification}},
}

// workerSlots is how many steps a worker takes at once.
const workerSlots = 8

// demoWorker is a worker's process.
type demoWorker struct {
	*child
	plan    workerPlan
	journal string
}

// startWorker starts a worker with a journal of its own. A worker that comes back bears its name and a number.
func (d *demo) startWorker(plan workerPlan) (*demoWorker, error) {
	life := 1
	for _, worker := range d.workers {
		if worker.plan.name == plan.name {
			life++
		}
	}
	w := &demoWorker{plan: plan, journal: filepath.Join(d.dir, fmt.Sprintf("%s.%d.journal", plan.name, life))}
	program, args, err := d.workerCommand(plan)
	if err != nil {
		return nil, err
	}
	// Who was killed is taken for alive for a while, so the next one needs a name of its own.
	namespace, slots, services := "default", workerSlots, d.services
	if plan.side != nil {
		namespace, slots, services = plan.side.namespace, outageSlots, plan.side.services
	}
	args = append(args, "--address", d.server.address, "--namespace", namespace, "--worker-id", fmt.Sprintf("%s.%d", plan.name, life),
		"--journal", w.journal, "--max-in-flight", fmt.Sprint(slots))
	for _, step := range plan.steps {
		args = append(args, "--handler", step)
	}
	for name, url := range services.URLs {
		args = append(args, "--service", name+"="+url)
	}
	if w.child, err = d.launch(fmt.Sprintf("%s.%d", plan.name, life), nil, program, args...); err != nil {
		return nil, err
	}
	d.workers = append(d.workers, w)
	d.journals = append(d.journals, w.journal)
	d.say("worker %s is process %d: %s", plan.name, w.pid(), strings.Join(plan.steps, ", "))
	return w, nil
}

func (d *demo) workerCommand(plan workerPlan) (program string, args []string, err error) {
	if plan.python {
		return d.python, []string{d.workerPy()}, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", nil, fmt.Errorf("finding this program: %w", err)
	}
	args = []string{"demo", "worker"}
	switch d.mutant {
	case "ignore_retry_after", "retry_refused", "call_again":
		args = append(args, "--defect", d.mutant)
	}
	return self, args, nil
}

// worker is the newest one of a name.
func (d *demo) worker(name string) *demoWorker {
	for i := len(d.workers) - 1; i >= 0; i-- {
		if d.workers[i].plan.name == name {
			return d.workers[i]
		}
	}
	return nil
}

// holds is how many steps a worker has been given and has not been answered for, by its journal.
func (d *demo) holds(name string) int {
	held := make(map[string]bool)
	// A journal that cannot be read yet holds nothing.
	_ = history.ReadJournal(d.worker(name).journal, func(entry history.Entry) error {
		switch entry.Kind {
		case history.FrameReceived:
			held[entry.Token] = true
		case history.ReportAnswered:
			delete(held, entry.Token)
		}
		return nil
	})
	return len(held)
}

// replaceWorker kills the newest worker of a name, and starts another.
func (d *demo) replaceWorker(name string) error {
	worker := d.worker(name)
	worker.kill()
	d.say("kill -9 worker %s, process %d, with %d steps in its hands", name, worker.pid(), d.holds(name))
	_, err := d.startWorker(worker.plan)
	return err
}

// stopWorkers lets the workers that are left finish, and sees that they do.
func (d *demo) stopWorkers(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("20 seconds are over"))
	defer cancel()
	for _, worker := range d.workers {
		if worker.wanted {
			continue
		}
		if err := worker.stop(ctx); err != nil {
			return err
		}
	}
	return nil
}
