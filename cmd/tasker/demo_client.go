package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/template"
	"github.com/taskerhq/tasker/internal/worker"
)

// demoBatch is how many tasks are submitted in one call.
const demoBatch = 24

// demoClient submits tasks. It writes into its journal what it sends before it sends it, and what it is answered.
type demoClient struct {
	conn      *grpc.ClientConn
	tasks     taskerv1.TaskServiceClient
	templates taskerv1.TemplateServiceClient
	circuits  taskerv1.CircuitServiceClient
	journal   *history.Journal
	namespace string
	template  string

	mu      sync.Mutex
	taskIDs map[int64]int64 // by user
	repeats int             // calls that had to be made again
}

// newClient makes the client of a namespace, whose tasks are made of a template.
func (d *demo) newClient(namespace, template string) (*demoClient, error) {
	conn, err := worker.Dial(d.server.address, insecure.NewCredentials())
	if err != nil {
		return nil, err
	}
	name := "client"
	if namespace != "default" {
		name += "-" + namespace
	}
	path := filepath.Join(d.dir, name+".journal")
	journal, err := history.OpenJournal(path)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	d.journals = append(d.journals, path)
	return &demoClient{
		conn:      conn,
		tasks:     taskerv1.NewTaskServiceClient(conn),
		templates: taskerv1.NewTemplateServiceClient(conn),
		circuits:  taskerv1.NewCircuitServiceClient(conn),
		journal:   journal,
		namespace: namespace,
		template:  template,
		taskIDs:   make(map[int64]int64),
	}, nil
}

func (c *demoClient) close() error { return errors.Join(c.journal.Close(), c.conn.Close()) }

// register makes a template known, after a change to it.
func (c *demoClient) register(ctx context.Context, yaml []byte, change func(*taskerv1.Template)) error {
	definition, err := template.Parse(c.template+".yaml", yaml, "")
	if err != nil {
		return err
	}
	definition.Namespace = c.namespace
	change(definition)
	_, err = c.templates.RegisterTemplate(ctx, &taskerv1.RegisterTemplateRequest{Template: definition})
	if err != nil {
		return fmt.Errorf("registering the template: %w", err)
	}
	return nil
}

// submit makes a task for each user, however often the server is away meanwhile: the idempotency keys make a repeat safe.
func (c *demoClient) submit(ctx context.Context, from, to int) error {
	for first := from; first <= to; first += demoBatch {
		if err := c.submitBatch(ctx, first, min(first+demoBatch-1, to)); err != nil {
			return fmt.Errorf("submitting the tasks of users %d to %d: %w", first, min(first+demoBatch-1, to), err)
		}
	}
	return nil
}

func (c *demoClient) submitBatch(ctx context.Context, from, to int) error {
	request := &taskerv1.BatchSubmitTasksRequest{Namespace: c.namespace}
	var keys []string
	for user := from; user <= to; user++ {
		key := "user-" + strconv.Itoa(user)
		keys = append(keys, key)
		request.Tasks = append(request.Tasks, &taskerv1.TaskSubmission{
			Definition:     &taskerv1.TaskSubmission_Template{Template: &taskerv1.TemplateRef{Name: c.template}},
			Context:        fmt.Sprintf(`{"user_id": %d, "email": "user-%d@example.org"}`, user, user),
			IdempotencyKey: &key,
			Labels:         map[string]string{"demo": c.template},
		})
		if err := c.journal.Write(history.Entry{Kind: history.SubmitSent, Namespace: c.namespace, Key: key}); err != nil {
			return err
		}
	}
	answer, err := c.call(ctx, request)
	if err != nil {
		return err
	}
	if len(answer.GetResults()) != len(keys) {
		return fmt.Errorf("%d tasks submitted, %d answered", len(keys), len(answer.GetResults()))
	}
	for place, result := range answer.GetResults() {
		id, err := strconv.ParseInt(result.GetTaskId(), 10, 64)
		if err != nil {
			return fmt.Errorf("reading a task id: %w", err)
		}
		entry := history.Entry{
			Kind: history.SubmitAnswered, Namespace: c.namespace, Key: keys[place], TaskID: id, AlreadySubmitted: result.GetAlreadySubmitted(),
		}
		if err := c.journal.Write(entry); err != nil {
			return err
		}
		c.mu.Lock()
		c.taskIDs[int64(from+place)] = id
		c.mu.Unlock()
	}
	return nil
}

// call asks until there is an answer.
func (c *demoClient) call(ctx context.Context, request *taskerv1.BatchSubmitTasksRequest) (*taskerv1.BatchSubmitTasksResponse, error) {
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		answer, err := c.tasks.BatchSubmitTasks(try, request)
		cancel()
		switch status.Code(err) {
		case codes.OK:
			return answer, nil
		case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition:
			return nil, err
		}
		c.mu.Lock()
		c.repeats++
		c.mu.Unlock()
		select {
		case <-time.After(rand.N(500 * time.Millisecond)): //nolint:gosec // Jitter is no secret.
		case <-ctx.Done():
			return nil, errors.Join(err, context.Cause(ctx))
		}
	}
}

// users gives the task of each user, as far as they were answered.
func (c *demoClient) users() map[int64]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	users := make(map[int64]int64, len(c.taskIDs))
	for user, id := range c.taskIDs {
		users[user] = id
	}
	return users
}
