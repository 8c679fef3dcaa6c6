package docs_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

const workerPage = "docs/writing-a-worker.md"

// pythonFile is a block of a page by the name of the file that it is.
func pythonFile(t *testing.T, page, name string) string {
	t.Helper()
	for _, fence := range fences(t, page) {
		if fence.language == "python" && fence.note == name {
			return fence.text
		}
	}
	t.Fatalf("%s has no python block %q", page, name)
	return ""
}

// pythonCommand is a Python program that can import the stubs.
func pythonCommand(t *testing.T, source string, args ...string) *exec.Cmd {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program.py")
	if err := os.WriteFile(path, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python(), append([]string{path}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+stubs, "PYTHONDONTWRITEBYTECODE=1")
	return cmd
}

// Every block has a name, by which a test runs it, and compiles.
func TestPython(t *testing.T) {
	for _, fence := range only(t, "python") {
		t.Run(fmt.Sprintf("%s:%d", fence.page, fence.line), func(t *testing.T) {
			if fence.note == "" {
				t.Error("it has no name")
			}
			cmd := pythonCommand(t, "import sys; compile(sys.stdin.read(), 'page', 'exec')")
			cmd.Stdin = strings.NewReader(fence.text)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// The page calls the worker "about forty lines".
func TestWorkerIsAsShortAsThePageSays(t *testing.T) {
	lines := 0
	for line := range strings.Lines(pythonFile(t, workerPage, "worker.py")) {
		if strings.TrimSpace(line) != "" {
			lines++
		}
	}
	if lines > 45 {
		t.Errorf("it has %d lines", lines)
	}
}

// The page's worker, with the part on stopping, keeps a run of 12 seconds under a lease of 5 through a kill of the server,
// and ends in order.
func TestWorkerOfThePage(t *testing.T) {
	t.Parallel()
	data, err := os.MkdirTemp(work, "worker-") //nolint:usetesting // PostgreSQL may run as another user, who cannot enter what t.TempDir makes.
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(data, 0o755); err != nil {
		t.Fatal(err)
	}
	server, err := startServer(filepath.Join(data, "data"), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { server.kill() }()

	source := pythonFile(t, workerPage, "worker.py")
	const lastLoop = "\nwhile not time.sleep(random.uniform(0, pause)):"
	if strings.Count(source, lastLoop) != 1 {
		t.Fatalf("the worker's last loop does not begin with %q", lastLoop)
	}
	source = strings.Replace(source, lastLoop, "\n"+pythonFile(t, workerPage, "stopping.py")+lastLoop, 1)
	cmd := pythonCommand(t, source, server.address, "resizer")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }() // It has ended if all went well.

	c := dial(t, server.address)
	resize := func(seconds int) int64 {
		name := "images"
		answer, err := c.tasks.SubmitTask(t.Context(), &taskerv1.SubmitTaskRequest{Task: &taskerv1.TaskSubmission{
			Name: &name, Context: fmt.Sprintf(`{"seconds": %d}`, seconds),
			Definition: &taskerv1.TaskSubmission_Inline{Inline: &taskerv1.InlineSteps{Steps: []*taskerv1.StepDefinition{
				{Name: "resize", Lease: durationpb.New(5 * time.Second)},
			}}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		id, err := strconv.ParseInt(answer.GetTask().GetTaskId(), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	step := func(task int64) *taskerv1.Step {
		answer, err := c.steps.GetStep(t.Context(), &taskerv1.GetStepRequest{StepId: strconv.FormatInt(task+1, 10), IncludePayloads: true})
		if err != nil {
			t.Fatal(err)
		}
		return answer.GetStep()
	}

	long := resize(12)
	eventually(t, "the run is confirmed", 20*time.Second, func() bool { return step(long).GetLease().GetConfirmedAt() != nil })
	server.kill()
	next, err := startServer(filepath.Join(data, "data"), server.address)
	if err != nil {
		t.Fatal(err)
	}
	server = next
	eventually(t, "the long run is complete", 30*time.Second, func() bool {
		return step(long).GetState() == taskerv1.StepState_STEP_STATE_COMPLETE
	})
	if got := step(long); got.GetDispatches() != 1 || got.GetLostLeases() != 0 || got.GetAttempts() != 1 || got.GetResults() != `{"resized": true}` {
		t.Errorf("the long run: %v", got)
	}

	// Told to stop in the middle of a run, the worker finishes it.
	last := resize(3)
	eventually(t, "the last run has begun", 20*time.Second, func() bool {
		return step(last).GetState() == taskerv1.StepState_STEP_STATE_IN_PROGRESS
	})
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the worker ended with %v\n%s", err, out.String())
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the worker does not stop\n%s", out.String())
	}
	if got := step(last); got.GetState() != taskerv1.StepState_STEP_STATE_COMPLETE || got.GetDispatches() != 1 {
		t.Errorf("the last run: %v", got)
	}
}

// The handler that calls a service sorts every kind of answer into the right outcome.
func TestHTTPHandlerOfThePage(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Idempotency-Key") != "key" {
			t.Errorf("Idempotency-Key is %q", r.Header.Get("Idempotency-Key"))
		}
		status, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			t.Errorf("path %q", r.URL.Path)
			return
		}
		if status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT")
		}
		w.WriteHeader(status)
		fmt.Fprint(w, `{"id": 7}`)
	}))
	defer service.Close()
	driver := pythonFile(t, workerPage, "http.py") + `
import sys
from google.protobuf.json_format import MessageToJson
from tasker.v1 import worker_service_pb2 as pb
report = pb.ReportStepResultRequest()
create_user(pb.ReadyStep(idempotency_key="key", context="{}", handler_config=json.dumps({"url": sys.argv[1]})), report)
print(MessageToJson(report))
`
	nobody := httptest.NewServer(http.NotFoundHandler())
	nobody.Close()
	failure := func(status int, text string) map[string]any {
		return map[string]any{"errorCode": fmt.Sprintf("HTTP_%d", status), "httpStatus": float64(status), "message": text}
	}
	for url, want := range map[string]map[string]any{
		service.URL + "/201": {"success": map[string]any{"results": `{"id": 7}`}},
		service.URL + "/422": {"permanentFailure": map[string]any{"failure": failure(422, "Unprocessable Entity")}},
		service.URL + "/503": {"retryableFailure": map[string]any{"failure": failure(503, "Service Unavailable")}},
		service.URL + "/429": {"retryableFailure": map[string]any{
			"failure": failure(429, "Too Many Requests"), "retryAfterHeader": "Wed, 21 Oct 2026 07:28:00 GMT",
		}},
	} {
		out, err := pythonCommand(t, driver, url).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", url, err, out)
		}
		var got map[string]any
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%s: %v\n%s", url, err, out)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", url, got, want)
		}
	}
	out, err := pythonCommand(t, driver, nobody.URL+"/201").CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"NO_ANSWER"`) || !strings.Contains(string(out), `"retryableFailure"`) {
		t.Errorf("nobody answers: %v\n%s", err, out)
	}
}

// What one run stores with a heartbeat, the next one finds.
func TestCheckpointOfThePage(t *testing.T) {
	server := sharedServer(t)
	dial(t, server.address).submit(t, "export", &taskerv1.StepDefinition{Name: "export_rows"})
	driver := pythonFile(t, workerPage, "checkpoint.py") + `
import sys
import grpc
from tasker.v1 import worker_service_pb2_grpc as rpc
stub = rpc.WorkerServiceStub(grpc.insecure_channel(sys.argv[1]))
me = pb.PollReadyStepsRequest(worker_id="exporter", instance_id="1", max_in_flight=1, handlers=[{"name": "export_rows"}])
me.wait_duration.FromSeconds(10)
step = stub.PollReadySteps(me).steps[0]
assert heartbeat(stub, step, 42).entries[0].status.code == 0
stub.ReleaseSteps(pb.ReleaseStepsRequest(releases=[{"lease_token": step.lease_token}]))
step = stub.PollReadySteps(me).steps[0]
report = pb.ReportStepResultRequest(lease_token=step.lease_token)
report.success.results = step.checkpoint
stub.ReportStepResult(report)
print(step.checkpoint)
`
	out, err := pythonCommand(t, driver, server.address).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != `{"rows_done": 42}` {
		t.Errorf("%v\n%s", err, out)
	}
}
