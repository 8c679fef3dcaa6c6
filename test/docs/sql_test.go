package docs_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/taskerhq/tasker/examples/registration"
	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/worker"
)

// How a block of SQL is to be run.
const (
	noteLateral = "lateral" // with task_id in scope
	noteAdmin   = "admin"   // as a role that may make roles
	noteEmpty   = "empty"   // may well find nothing here
)

// Every query of every page runs as tasker_reader on a real server's database in which things have gone wrong, and finds
// something.
func TestSQL(t *testing.T) {
	server := sharedServer(t)
	task := troubledTask(t, server)
	reader := connect(t, server, "tasker_reader")
	for _, fence := range only(t, "sql") {
		t.Run(fmt.Sprintf("%s:%d", fence.page, fence.line), func(t *testing.T) {
			if fence.note == noteAdmin {
				runAdmin(t, connect(t, server, ""), fence.text)
				return
			}
			query := strings.TrimSuffix(strings.TrimSpace(fence.text), ";")
			query = strings.ReplaceAll(query, ":task_id", strconv.FormatInt(task, 10))
			if fence.note == noteLateral {
				query = fmt.Sprintf("select answer.* from (select %d::bigint as task_id) as task cross join lateral (%s) as answer", task, query)
			}
			rows, err := reader.Query(t.Context(), query)
			if err != nil {
				t.Fatal(err)
			}
			found, err := pgx.CollectRows(rows, pgx.RowToMap)
			if err != nil {
				t.Fatal(err)
			}
			if len(found) == 0 && fence.note != noteEmpty {
				t.Error("it finds nothing")
			}
		})
	}
}

// runAdmin runs statements and takes them back.
func runAdmin(t *testing.T, conn *pgx.Conn, statements string) {
	t.Helper()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), statements); err != nil {
		t.Fatal(err)
	}
}

// The two queries that everything is measured by stand on the page as they were given.
func TestTheTwoQuestionsAreOnThePage(t *testing.T) {
	for _, query := range registration.Queries {
		if !strings.Contains(read(t, sqlPage), query) {
			t.Errorf("%s does not have:\n%s", sqlPage, query)
		}
	}
}

// clients are the services of a server.
type clients struct {
	tasks    taskerv1.TaskServiceClient
	steps    taskerv1.StepServiceClient
	workers  taskerv1.WorkerServiceClient
	circuits taskerv1.CircuitServiceClient
}

func dial(t *testing.T, address string) clients {
	t.Helper()
	conn, err := worker.Dial(address, insecure.NewCredentials(), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // Nothing is left to be lost.
	return clients{
		taskerv1.NewTaskServiceClient(conn), taskerv1.NewStepServiceClient(conn), taskerv1.NewWorkerServiceClient(conn),
		taskerv1.NewCircuitServiceClient(conn),
	}
}

// submit makes a task of steps, each after the one before it.
func (c clients) submit(t *testing.T, name string, steps ...*taskerv1.StepDefinition) int64 {
	t.Helper()
	for i, step := range steps[1:] {
		step.DependsOn = []string{steps[i].GetName()}
	}
	answer, err := c.tasks.SubmitTask(t.Context(), &taskerv1.SubmitTaskRequest{Task: &taskerv1.TaskSubmission{
		Name:       &name,
		Definition: &taskerv1.TaskSubmission_Inline{Inline: &taskerv1.InlineSteps{Steps: steps}},
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

// troubledTask fills a server's database with a bit of everything, and names a task of which one step has failed for good
// and another waits behind it.
func troubledTask(t *testing.T, server *server) int64 {
	t.Helper()
	c := dial(t, server.address)
	status := int32(422)
	stop := startWorker(t, c, map[string]worker.Handler{
		"charge": func(context.Context, *worker.Run) worker.Outcome {
			return worker.PermanentFailure(&taskerv1.Failure{ErrorCode: "CARD_DECLINED", Message: "the card was declined", HttpStatus: &status})
		},
		"fetch": func(context.Context, *worker.Run) worker.Outcome {
			return worker.RetryableFailure(&taskerv1.Failure{ErrorCode: "HTTP_429"}, worker.RetryAfterHeader("3600"))
		},
		"store": func(context.Context, *worker.Run) worker.Outcome {
			return worker.RetryableFailure(&taskerv1.Failure{ErrorCode: "HTTP_503"})
		},
		"mail": func(context.Context, *worker.Run) worker.Outcome { return worker.Success(`{"sent": true}`) },
	})
	defer stop()
	slow := &taskerv1.BackoffPolicy{Initial: durationpb.New(time.Hour), Max: durationpb.New(time.Hour)}
	c.submit(t, "newsletter", &taskerv1.StepDefinition{Name: "mail"})
	c.submit(t, "import", &taskerv1.StepDefinition{Name: "fetch"})
	stored := c.submit(t, "archive", &taskerv1.StepDefinition{Name: "store", Backoff: slow})
	unwanted := c.submit(t, "unwanted", &taskerv1.StepDefinition{Name: "nobody"})
	held := "payments/eu"
	c.submit(t, "refund", &taskerv1.StepDefinition{Name: "refund", Circuit: &held})
	if _, err := c.circuits.HoldCircuit(t.Context(), &taskerv1.HoldCircuitRequest{Circuit: held, Reason: "moving its database"}); err != nil {
		t.Fatal(err)
	}
	troubled := c.submit(t, "order", &taskerv1.StepDefinition{Name: "charge"}, &taskerv1.StepDefinition{Name: "mail"})

	db := connect(t, server, "tasker_reader")
	count := func(query string) (n int) {
		if err := db.QueryRow(t.Context(), query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "four steps have been run", 20*time.Second, func() bool {
		return count("select count(distinct workflow_step_id) from step_attempts_v where outcome is not null") >= 4
	})
	if _, err := c.steps.RetryStep(t.Context(), &taskerv1.RetryStepRequest{StepId: strconv.FormatInt(stored+1, 10), Reason: "the disk is back"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.tasks.CancelTask(t.Context(), &taskerv1.CancelTaskRequest{TaskId: strconv.FormatInt(unwanted, 10), Reason: "not wanted"}); err != nil {
		t.Fatal(err)
	}
	loseLease(t, c)
	eventually(t, "a lease is lost and the retried step has failed again", 20*time.Second, func() bool {
		return count("select count(*) from step_attempts_v where outcome = 'lost_lease'") > 0 &&
			count("select count(*) from step_attempts_v where name = 'store' and next_retry_at > now()") > 1
	})
	return troubled
}

// startWorker works until stop is called.
func startWorker(t *testing.T, c clients, handlers map[string]worker.Handler) (stop func()) {
	t.Helper()
	config := worker.Config{Client: c.workers, WorkerID: "filler", MaxInFlight: 8}
	for name, run := range handlers {
		config.Subscriptions = append(config.Subscriptions, worker.Subscription{Handler: name, Run: run})
	}
	w, err := worker.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// loseLease takes a step, confirms it, and lets its lease run out.
func loseLease(t *testing.T, c clients) {
	t.Helper()
	lost := int32(1)
	c.submit(t, "forgotten", &taskerv1.StepDefinition{Name: "forget", Lease: durationpb.New(5 * time.Second), MaxLostLeases: &lost})
	answer, err := c.workers.PollReadySteps(t.Context(), &taskerv1.PollReadyStepsRequest{
		WorkerId: "forgetful", InstanceId: "1", MaxInFlight: 1, Handlers: []*taskerv1.HandlerSubscription{{Name: "forget"}},
		WaitDuration: durationpb.New(10 * time.Second),
	})
	if err != nil || len(answer.GetSteps()) != 1 {
		t.Fatalf("polled %v: %v", answer, err)
	}
	if _, err := c.workers.HeartbeatSteps(t.Context(), &taskerv1.HeartbeatStepsRequest{
		Heartbeats: []*taskerv1.StepHeartbeat{{LeaseToken: answer.GetSteps()[0].GetLeaseToken()}},
	}); err != nil {
		t.Fatal(err)
	}
}
