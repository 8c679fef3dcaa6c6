package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/history"
)

// asProgram makes the test binary be tasker, so that tests can have servers and workers that are processes of their own.
const asProgram = "TASKER_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(runUntilSignal())
	}
	code := m.Run()
	shared.stop()
	os.Exit(code)
}

// testProcess is a tasker of its own.
type testProcess struct {
	cmd    *exec.Cmd
	stdout *bufio.Reader
	stderr *syncBuffer
	told   bool // has been signalled
}

type syncBuffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

func startProcess(env []string, args ...string) (*testProcess, error) {
	p := &testProcess{cmd: exec.Command(os.Args[0], args...), stderr: &syncBuffer{}}
	p.cmd.Env = append(append(os.Environ(), asProgram+"=1"), env...)
	p.cmd.Stderr = p.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.stdout = bufio.NewReader(stdout)
	return p, p.cmd.Start()
}

// tell signals a process, once: a second signal would end it on the spot.
func (p *testProcess) tell(signal os.Signal) {
	if !p.told {
		p.told = true
		_ = p.cmd.Process.Signal(signal) // It may have ended by itself; Wait tells.
	}
}

// end tells a process to end, unless it was told before, and says how it ended.
func (p *testProcess) end(signal os.Signal) error {
	p.tell(signal)
	_, _ = io.Copy(io.Discard, p.stdout)
	return p.cmd.Wait()
}

// testServer is a `tasker serve` with a Postgres of its own.
type testServer struct {
	*testProcess
	address, dataDir string
}

func startServer(dataDir, listen string, flags ...string) (*testServer, error) {
	p, err := startProcess(nil, append([]string{"serve", "--listen", listen, "--data-dir", dataDir}, flags...)...)
	if err != nil {
		return nil, err
	}
	line, err := p.stdout.ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "serving on ")
	if err != nil || !ok {
		return nil, fmt.Errorf("the server said %q (%w): %s", line, err, p.stderr)
	}
	return &testServer{testProcess: p, address: address, dataDir: dataDir}, nil
}

// shared is the server of all tests that do it no harm. Each test has a namespace of its own.
var shared sharedServer

type sharedServer struct {
	once sync.Once
	*testServer
	err error
}

func (s *sharedServer) start() {
	dataDir, err := os.MkdirTemp("", "tasker-test-*")
	if err == nil {
		s.testServer, err = startServer(dataDir, "127.0.0.1:0")
	}
	s.err = err
}

func (s *sharedServer) stop() {
	if s.testServer != nil {
		if err := s.end(syscall.SIGTERM); err != nil {
			fmt.Fprintln(os.Stderr, "the server ended with", err, s.stderr)
		}
		_ = os.RemoveAll(s.dataDir)
	}
}

// person types commands.
type person struct {
	t   *testing.T
	env map[string]string
}

// people counts them, so that no two have one namespace.
var people atomic.Int32

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// newPerson is somebody with a namespace of their own on the shared server.
func newPerson(t *testing.T) *person {
	t.Helper()
	shared.once.Do(shared.start)
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return personAt(t, shared.address)
}

func personAt(t *testing.T, address string) *person {
	t.Helper()
	name := notInNames.ReplaceAllString(strings.ToLower(t.Name()), "-")
	namespace := fmt.Sprintf("%s-%d", name[:min(len(name), 50)], people.Add(1))
	return &person{t: t, env: map[string]string{"TASKER_ADDRESS": address, "TASKER_NAMESPACE": namespace}}
}

// try runs a command and returns what it said and its exit status.
func (p *person) try(args ...string) (stdout, stderr string, code int) {
	p.t.Helper()
	var out, err bytes.Buffer
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	code = run(ctx, args, p.getenv, strings.NewReader(""), &out, &err)
	return out.String(), err.String(), code
}

func (p *person) getenv(name string) string { return p.env[name] }

// ok runs a command that must succeed.
func (p *person) ok(args ...string) string {
	p.t.Helper()
	stdout, stderr, code := p.try(args...)
	if code != 0 {
		p.t.Fatalf("tasker %s: exit status %d: %s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// refused runs a command that must fail, and say these words.
func (p *person) refused(words string, args ...string) {
	p.t.Helper()
	stdout, stderr, code := p.try(args...)
	if code != 1 || !strings.Contains(stderr, words) {
		p.t.Errorf("tasker %s: exit status %d, want 1 and %q: %s%s", strings.Join(args, " "), code, words, stdout, stderr)
	}
}

// answer runs a command with -o json and reads the message it prints.
func answer[M proto.Message](p *person, into M, args ...string) M {
	p.t.Helper()
	stdout := p.ok(append([]string{"-o", "json"}, args...)...)
	if err := protojson.Unmarshal([]byte(stdout), into); err != nil {
		p.t.Fatalf("tasker %s: %v\n%s", strings.Join(args, " "), err, stdout)
	}
	return into
}

// file writes a file of the test's own.
func (p *person) file(name, body string) string {
	p.t.Helper()
	path := filepath.Join(p.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// work has a worker process run a script for each step of the handlers until the test ends.
func (p *person) work(script string, flags ...string) *testProcess {
	p.t.Helper()
	var env []string
	for name, value := range p.env {
		env = append(env, name+"="+value)
	}
	worker, err := startProcess(env, append(append([]string{"work"}, flags...), "--", "sh", "-c", script)...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := worker.end(syscall.SIGTERM); err != nil {
			p.t.Errorf("the worker ended with %v: %s", err, worker.stderr)
		}
	})
	return worker
}

// eventually waits for a condition that must come true.
func (p *person) eventually(what string, holds func() bool) {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		if time.Now().After(deadline) {
			p.t.Fatalf("not within %s: %s", patience, what)
		}
		<-ticker.C
	}
}

func (p *person) steps(task string) []*taskerv1.Step {
	p.t.Helper()
	return answer(p, &taskerv1.ListStepsResponse{}, "steps", task).GetSteps()
}

func (p *person) task(id string) *taskerv1.GetTaskResponse {
	p.t.Helper()
	return answer(p, &taskerv1.GetTaskResponse{}, "task", "get", id, "--context")
}

// seed is the template as its users have always written it.
const seed = `steps:
  - name: create_user_account
    retry_limit: 5
    retryable: true
    handler_config:
      timeout: 30
  - name: send_billing_notification
    depends_on: [create_user_account]
    retry_limit: 3
    retryable: true
    handler_config:
      timeout: 60
`

func TestFromTemplateToResults(t *testing.T) {
	p := newPerson(t)
	path := p.file("user_registration.yaml", seed)
	if got := p.ok("apply", "-f", path); !strings.HasPrefix(got, "user_registration@0.1.0 registered") {
		t.Errorf("apply said %q", got)
	}
	if got := p.ok("apply", "-f", path); !strings.HasPrefix(got, "user_registration@0.1.0 unchanged") {
		t.Errorf("apply said %q", got)
	}
	if got := p.ok("apply", "-f", path, "--version", "2.0.0", "--name", "other"); !strings.HasPrefix(got, "other@2.0.0 registered") {
		t.Errorf("apply said %q", got)
	}
	again := p.file("user_registration.yaml", p.ok("template", "get", "user_registration"))
	if got := p.ok("apply", "-f", again); !strings.HasPrefix(got, "user_registration@0.1.0 unchanged") {
		t.Errorf("the template that was printed is another: %q", got)
	}
	if got := answer(p, &taskerv1.ListTemplatesResponse{}, "templates").GetTemplates(); len(got) != 2 {
		t.Errorf("templates are %v", got)
	}
	plan := answer(p, &taskerv1.ValidateTaskResponse{}, "submit", "--template", "user_registration", "--dry-run")
	if len(plan.GetSteps()) != 2 || plan.GetTemplate().GetVersion() != "0.1.0" {
		t.Errorf("the plan is %v", plan)
	}

	submitted := answer(p, &taskerv1.SubmitTaskResponse{}, "submit", "--template", "user_registration@0.1.0",
		"--context", `{"id": 9007199254740993}`, "--label", "customer=7", "--name", "first")
	id := submitted.GetTask().GetTaskId()
	steps := p.steps(id)
	if len(steps) != 2 || !steps[0].GetReadyForExecution() || steps[1].GetReadyForExecution() {
		t.Fatalf("steps are %v", steps)
	}
	journal := filepath.Join(t.TempDir(), "journal")
	p.work(`cat > /dev/null
if [ "$TASKER_STEP_NAME" = create_user_account ] && [ "$TASKER_ATTEMPT" = 1 ]; then echo 0 >&3; echo not yet >&2; exit 75; fi
echo "{\"by\": \"$TASKER_STEP_NAME\", \"attempt\": $TASKER_ATTEMPT}"`,
		"--handler", "create_user_account", "--handler", "send_billing_notification=1", "--max-in-flight", "2", "--worker-id", "sh", "--label", "rack=3", "--journal", journal)

	lines := p.ok("task", "watch", id)
	if !strings.Contains(lines, "create_user_account") || !strings.HasSuffix(strings.TrimSpace(lines), "complete  all_complete  2 of 2 steps complete") {
		t.Errorf("the watch said\n%s", lines)
	}
	got := p.task(id)
	if got.GetTask().GetState() != taskerv1.TaskState_TASK_STATE_COMPLETE || got.GetTask().GetContext() != `{"id": 9007199254740993}` ||
		got.GetLeafResults()["send_billing_notification"] != `{"by": "send_billing_notification", "attempt": 1}` {
		t.Errorf("the task is %v", got)
	}
	attempts := answer(p, &taskerv1.ListStepAttemptsResponse{}, "attempts", steps[0].GetStepId()).GetAttempts()
	if len(attempts) != 2 || attempts[0].GetOutcome() != taskerv1.DispatchOutcome_DISPATCH_OUTCOME_SUCCESS || attempts[0].GetAttempt() != 2 ||
		attempts[1].GetFailure().GetErrorCode() != "EXIT_75" || attempts[1].GetFailure().GetMessage() != "not yet" ||
		attempts[1].GetDelaySource() != taskerv1.DelaySource_DELAY_SOURCE_HEADER_SECONDS || attempts[1].GetWorkerId() != "sh" {
		t.Errorf("attempts are %v", attempts)
	}
	var written []string
	p.eventually("a journal of all steps", func() bool {
		written = nil
		err := history.ReadJournal(journal, func(entry history.Entry) error {
			written = append(written, strings.TrimSpace(fmt.Sprintf("%s %d %s", entry.Kind, entry.Dispatch, entry.Outcome)))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return len(written) == 9
	})
	slices.Sort(written) // The next frame may come before the answer to a report.
	if got, want := strings.Join(written, ", "), "answer 1 retryable_failure, answer 1 success, answer 2 success, frame 1, frame 1, frame 2, "+
		"report 1 retryable_failure, report 1 success, report 2 success"; got != want {
		t.Errorf("the journal holds %s", got)
	}
	step := answer(p, &taskerv1.GetStepResponse{}, "step", "get", steps[0].GetStepId(), "--payloads").GetStep()
	if step.GetResults() != `{"by": "create_user_account", "attempt": 2}` {
		t.Errorf("the step is %v", step)
	}
	workers := answer(p, &taskerv1.ListWorkersResponse{}, "workers", "--handler", "create_user_account").GetWorkers()
	if len(workers) != 1 || workers[0].GetWorkerId() != "sh" || workers[0].GetMaxInFlight() != 2 || workers[0].GetLabels()["rack"] != "3" ||
		len(workers[0].GetHandlers()) != 2 {
		t.Errorf("workers are %v", workers)
	}
	for _, list := range [][]string{{"tasks"}, {"steps", id}, {"attempts", steps[0].GetStepId()}, {"workers"}, {"templates"}, {"task", "get", id}, {"step", "get", steps[0].GetStepId()}} {
		for _, format := range []string{"table", "yaml"} {
			if got := p.ok(append(list, "-o", format)...); len(strings.Split(got, "\n")) < 3 {
				t.Errorf("%v -o %s said %q", list, format, got)
			}
		}
	}
	if tasks := answer(p, &taskerv1.ListTasksResponse{}, "tasks", "--label", "customer=7", "--state", "complete", "--template", "user_registration").GetTasks(); len(tasks) != 1 || tasks[0].GetName() != "first" {
		t.Errorf("tasks are %v", tasks)
	}
	if tasks := answer(p, &taskerv1.ListTasksResponse{}, "tasks", "--created-before", "-1h").GetTasks(); len(tasks) != 0 {
		t.Errorf("tasks of an hour ago are %v", tasks)
	}
}

func TestRefusalsOfAServer(t *testing.T) {
	p := newPerson(t)
	p.refused("hint: `tasker tasks`", "task", "get", "5")
	p.refused("STEP_NOT_FOUND", "step", "retry", "5")
	p.refused("TEMPLATE_NOT_FOUND", "submit", "--template", "nothing")
	p.refused("VALIDATION", "step", "retry", "--bulk", "--parked-only")
	p.refused("BAD_PAGE_TOKEN", "tasks", "--page-token", "nonsense")
	p.refused(":2:", "apply", "-f", p.file("bad.yaml", "steps:\n  - nam: a\n"))
	p.refused("DAG_CYCLE", "submit", "-f", p.file("cycle.yaml", "steps:\n  - {name: a, depends_on: [b]}\n  - {name: b, depends_on: [a]}\n"))
}

func TestSubmitManyAndAgain(t *testing.T) {
	p := newPerson(t)
	path := p.file("one.yaml", "steps: [{name: one}]\n")
	first := answer(p, &taskerv1.BatchSubmitTasksResponse{}, "submit", "-f", path, "-n", "3", "--idempotency-key", "k")
	second := answer(p, &taskerv1.BatchSubmitTasksResponse{}, "submit", "-f", path, "-n", "4", "--idempotency-key", "k")
	for place, result := range second.GetResults() {
		if place < 3 && (result.GetTaskId() != first.GetResults()[place].GetTaskId() || !result.GetAlreadySubmitted()) {
			t.Errorf("task %d is %v, and was %v", place, result, first.GetResults()[place])
		}
	}
	if len(second.GetResults()) != 4 || second.GetResults()[3].GetAlreadySubmitted() {
		t.Errorf("the second submit made %v", second)
	}
	p.refused("IDEMPOTENCY_KEY_REUSED", "submit", "-f", path, "--context", `{"other": true}`, "--idempotency-key", "k-1")
	if ids := strings.Fields(p.ok("submit", "-f", path, "-n", "1005")); len(ids) != 1005 {
		t.Errorf("%d ids printed", len(ids))
	}

	all := answer(p, &taskerv1.ListTasksResponse{}, "tasks", "--limit", "0").GetTasks()
	if len(all) != 1009 {
		t.Errorf("%d tasks are listed, want 1009", len(all))
	}
	out, more, code := p.try("tasks", "--limit", "2")
	if code != 0 || strings.Count(out, "\n") != 3 {
		t.Fatalf("a short list is %q", out)
	}
	_, token, _ := strings.Cut(more, "--page-token ")
	token, _, _ = strings.Cut(token, ",")
	next := answer(p, &taskerv1.ListTasksResponse{}, "tasks", "--limit", "2", "--page-token", token).GetTasks()
	if len(next) != 2 || next[0].GetTaskId() != all[2].GetTaskId() {
		t.Errorf("after %q comes %v", more, next)
	}
}

func TestOperatorsActs(t *testing.T) {
	p := newPerson(t)
	path := p.file("pair.yaml", "steps:\n  - name: charge\n  - name: notify\n    depends_on: [charge]\n")
	p.work(`case "$TASKER_STEP_NAME $TASKER_DISPATCH" in
"charge 1") echo no such card >&2; exit 65 ;;
"charge "*) echo "{\"again\": true}" ;;
*) echo "{\"saw\": $(sed 's/.*"dependencyResults":\({[^}]*}\).*/\1/' | sed 's/"/\\"/g; s/^/"/; s/$/"/')}" ;;
esac`, "--handler", "charge", "--handler", "notify", "--max-in-flight", "8")
	fail := func() (task, step string) {
		out, errs, code := p.try("submit", "-f", path, "--wait", "-o", "json")
		var answer taskerv1.SubmitTaskResponse
		if err := protojson.Unmarshal([]byte(out), &answer); err != nil || code != 1 || !strings.Contains(errs, "0 of 1 tasks are complete, 1 in error") {
			t.Fatalf("submit --wait: exit status %d: %s %s", code, out, errs)
		}
		task = answer.GetTask().GetTaskId()
		return task, p.steps(task)[0].GetStepId()
	}
	finished := func(task string) *taskerv1.GetTaskResponse {
		p.ok("task", "watch", task, "-o", "json")
		return p.task(task)
	}

	task, step := fail()
	p.refused("ended in state error", "task", "watch", task, "--until-idle")
	if got := p.ok("step", "resolve", step, "--reason", "paid in cash"); !strings.Contains(got, "resolved_manually") {
		t.Errorf("resolve said %q", got)
	}
	finished(task)
	p.refused("STEP_FINISHED", "step", "resolve", step)
	p.refused("TASK_FINISHED", "task", "cancel", task)

	task, step = fail()
	p.ok("step", "complete", step, "--results", `{"paid":true}`)
	if saw := finished(task).GetLeafResults()["notify"]; !strings.Contains(saw, `paid`) {
		t.Errorf("the dependant saw %s", saw)
	}

	task, step = fail()
	if got := p.ok("step", "retry", step); !strings.Contains(got, "epoch 2") {
		t.Errorf("retry said %q", got)
	}
	finished(task)

	one, _ := fail()
	two, _ := fail()
	bulk := answer(p, &taskerv1.BulkRetryStepsResponse{}, "step", "retry", "--bulk", "--task", one, "--task", two, "--error-code", "EXIT_65", "--parked-only",
		"--failed-from", "-1h", "--reason", "new cards")
	if bulk.GetRetriedSteps() != 2 {
		t.Errorf("retried %v", bulk)
	}
	finished(one)
	finished(two)

	task, _ = fail()
	if got := p.ok("task", "cancel", task); !strings.Contains(got, "cancelled") {
		t.Errorf("cancel said %q", got)
	}
	if got := p.ok("task", "purge", task); !strings.Contains(got, "2 steps") {
		t.Errorf("purge said %q", got)
	}
	p.refused("TASK_NOT_FOUND", "task", "get", task)
}

// held makes a fifo that a worker's command holds open while it runs, and returns what it says there.
func (p *person) held() (path string, open func() *bufio.Reader) {
	p.t.Helper()
	path = filepath.Join(p.t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path, func() *bufio.Reader {
		p.t.Helper()
		fifo, err := os.Open(path)
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { _ = fifo.Close() })
		if err := fifo.SetReadDeadline(time.Now().Add(patience)); err != nil {
			p.t.Fatal(err)
		}
		return bufio.NewReader(fifo)
	}
}

// rest is what is still said on a fifo until nobody holds it any more.
func (p *person) rest(said *bufio.Reader) string {
	p.t.Helper()
	all, err := io.ReadAll(said)
	if err != nil {
		p.t.Fatalf("the command is not gone: %v", err)
	}
	return string(all)
}

func TestCancelledTaskEndsItsCommands(t *testing.T) {
	p := newPerson(t)
	fifo, open := p.held()
	p.work(`exec 9>`+fifo+`; trap 'echo ended >&9; exit 1' TERM; sleep 1000 & wait`, "--handler", "long")
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("long.yaml", "steps: [{name: long}]\n")))
	said := open()
	p.refused("TASK_NOT_FINISHED", "task", "purge", id)
	if got := p.ok("task", "cancel", id, "--reason", "not needed"); !strings.Contains(got, "1 of them running") {
		t.Errorf("cancel said %q", got)
	}
	if got := p.rest(said); got != "ended\n" {
		t.Errorf("the command said %q", got)
	}
	p.refused("ended in state cancelled", "task", "watch", id)
}

func TestRunTimeoutEndsTheCommand(t *testing.T) {
	p := newPerson(t)
	fifo, open := p.held()
	p.work(`exec 9>`+fifo+`; sleep 1000`, "--handler", "slow", "--kill-after", "0s")
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("slow.yaml", "steps: [{name: slow, retry_limit: 1, handler_config: {timeout: 1}}]\n")))
	p.rest(open())
	p.refused("ended in state error", "task", "watch", id, "--until-idle")
	if step := p.steps(id)[0]; step.GetLastFailure().GetErrorCode() != "TIMED_OUT" {
		t.Errorf("the step is %v", step)
	}
}

func TestLongRunsKeepTheirLease(t *testing.T) {
	p := newPerson(t)
	fifo, open := p.held()
	p.work(`exec 9>`+fifo+`; echo go >&9; read line < `+fifo+`.release`, "--handler", "long", "--delivery-timeout", "1s")
	if err := syscall.Mkfifo(fifo+".release", 0o600); err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("long.yaml", "steps: [{name: long, lease: 5s}]\n")))
	said := open()
	step := p.steps(id)[0].GetStepId()
	lease := func() *taskerv1.StepLease {
		return answer(p, &taskerv1.GetStepResponse{}, "step", "get", step).GetStep().GetLease()
	}
	first := lease()
	p.eventually("a lease that outlives its first term", func() bool {
		return lease().GetExpiresAt().AsTime().Sub(first.GetGrantedAt().AsTime()) > 8*time.Second
	})
	if err := os.WriteFile(fifo+".release", []byte("go\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.ok("task", "watch", id)
	p.rest(said)
	if step := p.steps(id)[0]; step.GetDispatches() != 1 || step.GetLostLeases() != 0 {
		t.Errorf("the step was dispatched %d times, %d leases lost", step.GetDispatches(), step.GetLostLeases())
	}
}

func TestWorkerToldToStopFinishesAndTakesNoMore(t *testing.T) {
	p := newPerson(t)
	fifo, open := p.held()
	if err := syscall.Mkfifo(fifo+".release", 0o600); err != nil {
		t.Fatal(err)
	}
	w := p.work(`exec 9>`+fifo+`; echo go >&9; read line < `+fifo+`.release`, "--handler", "work", "--max-in-flight", "1", "--worker-id", "leaver")
	path := p.file("work.yaml", "steps: [{name: work}]\n")
	first := strings.TrimSpace(p.ok("submit", "-f", path))
	said := open()
	second := strings.TrimSpace(p.ok("submit", "-f", path))
	w.tell(syscall.SIGTERM)
	p.eventually("the drain to be in force", func() bool {
		workers := answer(p, &taskerv1.ListWorkersResponse{}, "workers").GetWorkers()
		return len(workers) == 1 && workers[0].GetDrainedAt() != nil
	})
	if err := os.WriteFile(fifo+".release", []byte("go\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.ok("task", "watch", first)
	p.rest(said)
	if step := p.steps(second)[0]; step.GetDispatches() != 0 {
		t.Errorf("a step was given to a worker that stops: %v", step)
	}
}

func TestWorkerOutOfTimeHandsItsStepsBack(t *testing.T) {
	p := newPerson(t)
	fifo, open := p.held()
	w := p.work(`exec 9>`+fifo+`; sleep 1000`, "--handler", "work", "--drain-timeout", "100ms", "--kill-after", "0s")
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("work.yaml", "steps: [{name: work}]\n")))
	said := open()
	w.tell(syscall.SIGTERM)
	p.rest(said)
	p.eventually("the step to be ready again", func() bool { return p.steps(id)[0].GetReadyForExecution() })
	if step := p.steps(id)[0]; step.GetAttempts() != 0 || step.GetLostLeases() != 0 {
		t.Errorf("handing back cost something: %v", step)
	}
}

func TestKilledWorkerTakesItsCommandsAlongAndItsStepsRunElsewhere(t *testing.T) {
	p := newPerson(t)
	fifo, open := p.held()
	first, err := startProcess([]string{"TASKER_ADDRESS=" + p.env["TASKER_ADDRESS"], "TASKER_NAMESPACE=" + p.env["TASKER_NAMESPACE"]},
		"work", "--handler", "work", "--", "sh", "-c", "exec 9>"+fifo+"; exec sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("work.yaml", "steps: [{name: work, lease: 5s}]\n")))
	said := open()
	_ = first.end(syscall.SIGKILL)
	p.rest(said)
	p.work(`echo '{"by":"the second"}'`, "--handler", "work")
	p.ok("task", "watch", id)
	if got := p.task(id).GetLeafResults()["work"]; got != `{"by":"the second"}` {
		t.Errorf("results are %s", got)
	}
}

func TestSQLOfTheEmbeddedDatabase(t *testing.T) {
	p := newPerson(t)
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("work.yaml", "steps: [{name: work}]\n")))
	query := "select name, current_state, ready_for_execution from get_step_readiness_status(" + id + ")"
	for _, readOnly := range [][]string{nil, {"--read-only"}} {
		args := append(append([]string{"sql", "--data-dir", shared.dataDir}, readOnly...), "--", "-XAtc", query)
		if got := p.ok(args...); got != "work|pending|t\n" {
			t.Errorf("%v said %q", args, got)
		}
	}
	if _, stderr, code := p.try("sql", "--data-dir", shared.dataDir, "--read-only", "--", "-XAtc", "select count(*) from task"); code != 1 || !strings.Contains(stderr, "permission denied") {
		t.Errorf("the reader may read a table: exit status %d, %s", code, stderr)
	}
	if _, _, code := p.try("sql", "--data-dir", shared.dataDir, "--", "-X", "--no-such-option"); code == 0 {
		t.Error("psql's exit status is lost")
	}
	p.refused("hint: `tasker serve` starts one", "sql", "--data-dir", t.TempDir())

	// On real standard streams the process becomes psql.
	became, err := startProcess(nil, "sql", "--data-dir", shared.dataDir, "--", "-XAtc", query)
	if err != nil {
		t.Fatal(err)
	}
	line, _ := became.stdout.ReadString('\n')
	if err := became.end(syscall.SIGCONT); err != nil || line != "work|pending|t\n" {
		t.Errorf("it said %q and ended with %v: %s", line, err, became.stderr)
	}
}

func TestServerKilledInTheMiddle(t *testing.T) {
	dataDir := t.TempDir()
	before, err := startServer(dataDir, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := personAt(t, before.address)
	fifo, open := p.held()
	if err := syscall.Mkfifo(fifo+".release", 0o600); err != nil {
		t.Fatal(err)
	}
	p.work(`exec 9>`+fifo+`; echo go >&9; read line < `+fifo+`.release; echo '{"survived":true}'`, "--handler", "work")
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("work.yaml", "steps: [{name: work}]\n")))
	said := open()

	frames, watching := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- run(t.Context(), []string{"task", "watch", id, "-o", "json"}, p.getenv, strings.NewReader(""), watching, io.Discard)
		_ = watching.Close()
	}()
	lines := bufio.NewReader(frames)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	_ = before.end(syscall.SIGKILL)
	after, err := startServer(dataDir, before.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := after.end(syscall.SIGTERM); err != nil {
			t.Errorf("the server ended with %v: %s", err, after.stderr)
		}
	})
	if err := os.WriteFile(fifo+".release", []byte("go\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("the watch ended with exit status %d", code)
		}
	case <-time.After(2 * patience):
		t.Fatal("the watch does not end")
	}
	p.rest(said)
	step := p.steps(id)[0]
	if got := p.task(id).GetLeafResults()["work"]; got != `{"survived":true}` || step.GetAttempts() != 1 {
		t.Errorf("results are %s after %d attempts", got, step.GetAttempts())
	}
}
