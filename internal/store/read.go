package store

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Tasks reads tasks by id, the newest first, in one snapshot. Ids that do not exist are absent.
func (s *Store) Tasks(ctx context.Context, ids []task.ID, withContext bool) ([]task.View, error) {
	raw := make([]int64, len(ids))
	for i, id := range ids {
		raw[i] = int64(id)
	}
	return s.tasks(ctx, s.Cold, raw, withContext)
}

func (s *Store) tasks(ctx context.Context, q querier, ids []int64, withContext bool) ([]task.View, error) {
	statement, which := "read_tasks", any(ids)
	if len(ids) == 1 {
		statement, which = "read_task", ids[0]
	}
	rows, err := q.Query(ctx, sqlText(statement), s.at(), which, withContext)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanTask)
}

func scanTask(row pgx.CollectableRow) (v task.View, err error) {
	var template, version, key, body, trace *string
	x := &v.Execution
	err = row.Scan(&v.ID, &v.Namespace, &v.Name, &template, &version, &v.Labels, &key, &body, &v.NotBefore, &v.Deadline,
		&v.CreatedAt, &v.CreatedBy, &v.EndedAt, &trace,
		&v.State, &x.Total, &x.Pending, &x.InProgress, &x.Completed, &x.Failed, &x.Ready, &x.WaitingForRetry, &x.Cancelled,
		&x.ExecutionStatus, &x.RecommendedAction, &x.CompletionPercentage, &x.HealthStatus)
	v.TemplateName, v.TemplateVersion, v.IdempotencyKey = deref(template), deref(version), deref(key)
	v.Context, v.TraceContext, v.StepCount = deref(body), deref(trace), x.Total
	return v, err
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func leafResults(ctx context.Context, q querier, id task.ID, budget int) (leaves task.LeafResults, err error) {
	rows, err := q.Query(ctx, sqlText("leaf_results"), int64(id), budget)
	if err != nil {
		return leaves, err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			no      int
			name    string
			results *string
		)
		if err := rows.Scan(&no, &name, &results); err != nil {
			return leaves, err
		}
		if results == nil {
			leaves.Omitted = append(leaves.Omitted, name)
		} else {
			leaves.Results = append(leaves.Results, task.DependencyResult{Name: name, Results: *results})
		}
	}
	return leaves, rows.Err()
}

// TaskWithLeaves reads a task and its leaves' results in one snapshot; ok is false when there is no such task.
func (s *Store) TaskWithLeaves(ctx context.Context, id task.ID, withContext bool, budget int) (v task.View, leaves task.LeafResults, ok bool, err error) {
	err = s.inSnapshot(ctx, func(tx pgx.Tx) error {
		found, err := s.tasks(ctx, tx, []int64{int64(id)}, withContext)
		if err != nil || len(found) == 0 {
			return err
		}
		v, ok = found[0], true
		leaves, err = leafResults(ctx, tx, id, budget)
		return err
	})
	return v, leaves, ok, err
}

// inSnapshot runs f in a transaction all of whose statements see the same.
func (s *Store) inSnapshot(ctx context.Context, f func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, s.Cold, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, f)
}

// listScan bounds how many rows one page of a list may look at.
const listScan = 20_000

// ListTasks reads a page of a namespace's tasks with ids below before (0: from the newest). next is where to go on; 0 at
// the end. The state of a task is derived, so filtering by it happens after the read: such a page may be short.
func (s *Store) ListTasks(ctx context.Context, namespaceID int32, f task.Filter, before task.ID, limit int) (page []task.View, next task.ID, err error) {
	if before == 0 {
		before = task.ID(1<<63 - 1)
	}
	var (
		labels   []string
		found    []int64
		lastSeen *int64
		scanned  int
	)
	if len(f.Labels) > 0 {
		labels = f.Labels
	}
	err = s.Cold.QueryRow(ctx, sqlText("list_tasks"), namespaceID, int64(before), limit, listScan, orNil(f.TemplateName), orNil(f.TemplateVersion),
		labels, f.CreatedFrom, f.CreatedBefore).Scan(&found, &lastSeen, &scanned)
	if err != nil || lastSeen == nil {
		return nil, 0, err
	}
	ids := make([]task.ID, len(found))
	for i, id := range found {
		ids[i] = task.ID(id)
	}
	switch {
	case len(ids) == limit:
		next = ids[limit-1]
	case scanned == listScan:
		next = task.ID(*lastSeen)
	}
	if len(ids) == 0 {
		return nil, next, nil
	}
	page, err = s.Tasks(ctx, ids, false)
	if len(f.States) > 0 {
		page = slices.DeleteFunc(page, func(v task.View) bool { return !slices.Contains(f.States, v.State) })
	}
	return page, next, err
}

// Steps reads steps of one task by number, in one snapshot. Numbers that do not exist are absent.
func (s *Store) Steps(ctx context.Context, id task.ID, stepNos []int, withPayloads bool) ([]task.StepView, error) {
	ids := make([]int64, len(stepNos))
	for i, no := range stepNos {
		ids[i] = int64(id.Step(no))
	}
	return s.steps(ctx, s.Cold, id, ids, withPayloads)
}

// AllSteps reads all steps of a task, without payloads, in one snapshot.
func (s *Store) AllSteps(ctx context.Context, id task.ID) ([]task.StepView, error) {
	return s.steps(ctx, s.Cold, id, nil, false)
}

func (s *Store) steps(ctx context.Context, q querier, id task.ID, ids []int64, withPayloads bool) ([]task.StepView, error) {
	rows, err := q.Query(ctx, sqlText("read_steps"), s.at(), int64(id), ids, withPayloads)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanStep)
}

func scanStep(row pgx.CollectableRow) (v task.StepView, err error) {
	var (
		taskID                              int64
		code, circuit, parkedReason         *string
		waitingFor                          *string
		results, checkpoint, handlerConfig  *string
		workerID, instanceID                *string
		leaseDispatch                       *int
		grantedAt, confirmedAt, leaseExpiry *time.Time
		failure                             failureColumns
	)
	err = row.Scan(&v.ID, &taskID, &v.Name, &v.State, &v.DependenciesSatisfied, &v.RetryEligible, &v.ReadyForExecution, &v.BlockedBy,
		&v.TotalParents, &v.CompletedParents, &v.Attempts, &v.RetryLimit, &v.Dispatches, &v.LostLeases, &v.Epoch,
		&v.NextRetryAt, &v.LastFailureAt, &v.LastAttemptedAt, &v.LastStartedAt, &v.BackoffRequest, &code, &circuit,
		&waitingFor, &v.WaitingUntil, &v.Handler, &v.Priority, &parkedReason,
		&failure.code, &failure.message, &failure.class, &failure.status, &failure.stack, &failure.details,
		&workerID, &instanceID, &leaseDispatch, &grantedAt, &confirmedAt, &leaseExpiry, &v.EndedAt, &v.DependsOn,
		&results, &checkpoint, &handlerConfig)
	if err != nil {
		return v, err
	}
	v.ErrorCode, v.Circuit, v.ParkedReason = deref(code), deref(circuit), deref(parkedReason)
	v.WaitingFor = deref(waitingFor)
	v.Results, v.Checkpoint, v.HandlerConfig = deref(results), deref(checkpoint), deref(handlerConfig)
	if v.LastFailureAt != nil {
		v.LastFailure = failure.failure()
	}
	if leaseDispatch != nil {
		v.Lease = &task.LeaseView{
			WorkerID: deref(workerID), InstanceID: deref(instanceID), Dispatch: *leaseDispatch,
			GrantedAt: *grantedAt, ConfirmedAt: confirmedAt, ExpiresAt: *leaseExpiry,
		}
	}
	return v, nil
}

// failureColumns are a failure's columns, all nullable.
type failureColumns struct {
	code, message, class, stack, details *string
	status                               *int
}

func (c failureColumns) failure() *task.Failure {
	return &task.Failure{
		ErrorCode: deref(c.code), Message: deref(c.message), ErrorClass: deref(c.class), HTTPStatus: deref(c.status),
		StackTrace: deref(c.stack), Details: deref(c.details),
	}
}

// StepCount is how many steps a task has; ok is false when there is no such task.
func (s *Store) StepCount(ctx context.Context, id task.ID) (n int, ok bool, err error) {
	err = s.Cold.QueryRow(ctx, sqlText("task_size"), int64(id)).Scan(&n)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	return n, err == nil, err
}

// Attempts reads dispatches of a step with numbers below before (0: from the newest).
func (s *Store) Attempts(ctx context.Context, id task.StepID, before, limit int) ([]task.AttemptView, error) {
	if before == 0 {
		before = 1<<31 - 1
	}
	rows, err := s.Cold.Query(ctx, sqlText("read_attempts"), int64(id.Task()), id.No(), before, limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (v task.AttemptView, err error) {
		var (
			attempt, epoch, lateReports                     *int
			workerID, instanceID, source                    *string
			lateOutcome, lateCode, lateMessage, lateResults *string
			lateAt                                          *time.Time
			f                                               failureColumns
		)
		err = row.Scan(&v.Dispatch, &attempt, &epoch, &v.Outcome, &workerID, &instanceID, &v.GrantedAt, &v.StartedAt, &v.EndedAt,
			&f.code, &f.message, &f.class, &f.status, &f.stack, &f.details, &v.Delay, &source, &v.DelayClamped, &v.NextRetryAt,
			&lateOutcome, &lateCode, &lateMessage, &lateResults, &lateAt, &lateReports)
		if err != nil {
			return v, err
		}
		v.Attempt, v.Epoch, v.WorkerID, v.InstanceID = deref(attempt), deref(epoch), deref(workerID), deref(instanceID)
		v.DelaySource = task.DelaySource(deref(source))
		switch v.Outcome {
		case task.RetryableFailure, task.PermanentFailure, task.TimedOut, task.DeadlineExceeded, task.LostLease:
			v.Failure = f.failure()
		}
		if lateOutcome != nil {
			v.Late = &task.LateReport{Outcome: task.Outcome(*lateOutcome), Results: deref(lateResults), RecordedAt: *lateAt, Reports: *lateReports}
			if v.Late.Outcome != task.Success {
				v.Late.Failure = &task.Failure{ErrorCode: deref(lateCode), Message: deref(lateMessage)}
			}
		}
		return v, nil
	})
}

// WorkerKey is a place in a list of worker sessions.
type WorkerKey struct {
	WorkerID  string
	SessionID int32
}

// Workers reads worker sessions of a namespace after a place, by worker_id: live ones, those that ended less than a day ago
// and those that still hold leases. handler, if set, must be one they take.
func (s *Store) Workers(ctx context.Context, namespaceID int32, after WorkerKey, limit int, handler string) ([]task.WorkerView, error) {
	rows, err := s.Cold.Query(ctx, sqlText("list_workers"), namespaceID, after.WorkerID, after.SessionID, limit, orNil(handler), s.at())
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[task.WorkerView])
}

// LeaseHeld tells whether the lease of a token stands.
func (s *Store) LeaseHeld(ctx context.Context, token task.Token) (held bool, err error) {
	err = s.Cold.QueryRow(ctx, sqlText("leased_step"), int64(token.Step.Task()), token.Step.No(), token.Nonce).Scan(&held)
	return held, err
}

// NamedDependencyResults reads results of a step's parents with numbers above afterNo, of all of them or of those named:
// as many as fit into budget bytes, at least one.
func (s *Store) NamedDependencyResults(ctx context.Context, step task.StepID, names []string, afterNo, limit, budget int) ([]NumberedResult, error) {
	if len(names) == 0 {
		names = nil
	}
	rows, err := s.Cold.Query(ctx, sqlText("named_dependency_results"), int64(step.Task()), step.No(), afterNo, limit, names, budget)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[NumberedResult])
}
