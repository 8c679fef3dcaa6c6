package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskerhq/tasker/internal/task"
)

// taskEnd is the pseudo child of every leaf: its counter closes when the task is complete.
const taskEnd = 1<<31 - 1

// A join of more than stripeAbove parents is counted down by stripes counters, so that arrivals queue less on one row.
const (
	stripeAbove = 256
	stripes     = 16
)

// TaskIDs hands out task ids: a block of numbers at a time, each used within blockLife, so that no task is born into a
// partition that retention has done with.
type TaskIDs struct {
	Store *Store
	Shard int

	mu    sync.Mutex
	next  int64
	until int64
	stale time.Time
}

const (
	blockSize = 1024 // task_number_seq's increment
	blockLife = time.Minute
)

// Take gives n fresh ids, rising.
func (t *TaskIDs) Take(ctx context.Context, n int) ([]task.ID, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ids := make([]task.ID, 0, n)
	for len(ids) < n {
		if t.next == t.until || time.Now().After(t.stale) {
			if err := t.Store.Hot.QueryRow(ctx, "select nextval('task_number_seq')").Scan(&t.next); err != nil {
				return nil, err
			}
			if t.next+blockSize > task.MaxNumber {
				return nil, fmt.Errorf("shard %d has used up its task numbers: give new tasks to another shard", t.Shard)
			}
			t.until, t.stale = t.next+blockSize, time.Now().Add(blockLife)
		}
		ids = append(ids, task.NewID(t.Shard, t.next))
		t.next++
	}
	return ids, nil
}

// NewTask is a submission with its id and its steps' lanes.
type NewTask struct {
	ID    task.ID
	Lanes []int32 // of Submission.Steps, one by one
	*task.Submission
}

// SubmitAnswer is what became of one task of a batch.
type SubmitAnswer struct {
	task.Submitted
	Refused *task.Error
}

// Submit stores tasks of one namespace in one transaction. A task whose idempotency key was used before is not stored:
// an equal body is answered with the task that stands, another one is refused. With allOrNothing, a refusal stores none.
func (s *Store) Submit(ctx context.Context, namespaceID int32, tasks []NewTask, allOrNothing bool) (answers []SubmitAnswer, change Change, err error) {
	err = s.inPartitions(ctx, tasks, func(p *pipeline) error {
		answers, change = make([]SubmitAnswer, len(tasks)), Change{}
		fresh, refused, err := s.claimKeys(ctx, p, namespaceID, tasks, answers)
		if err != nil {
			return err
		}
		if refused && allOrNothing || len(fresh) == 0 {
			// Nothing to store. Keys claimed for the others go with the transaction.
			if refused {
				return nil
			}
			return p.commit(ctx, &pgx.Batch{}, false)
		}
		copied := countSteps(fresh) >= copyFrom
		if copied {
			if err := p.copyIn(ctx, "step", stepColumns, &stepRows{tasks: fresh}); err != nil {
				return err
			}
		}
		b := &pgx.Batch{}
		var createdAt time.Time
		s.queueSubmit(b, namespaceID, fresh, copied, &createdAt, &change)
		if err := p.commit(ctx, b, false); err != nil {
			return err
		}
		stamp(answers, createdAt)
		return nil
	})
	return answers, change, err
}

// inPartitions is inPipeline for what stores tasks. Where their numbers have run ahead of the partitions, as those of a fresh shard
// may, it makes these and begins again.
func (s *Store) inPartitions(ctx context.Context, tasks []NewTask, f func(*pipeline) error) error {
	err := s.inPipeline(ctx, f)
	if len(tasks) == 0 || !missingPartition(err) {
		return err
	}
	first, last := tasks[0].ID, tasks[0].ID
	for i := range tasks {
		first, last = min(first, tasks[i].ID), max(last, tasks[i].ID)
	}
	err = s.retry(ctx, func() error {
		_, err := s.Cold.Exec(ctx, "select ensure_task_partitions($1::bigint >> 14, (($2::bigint >> 42) - ($1 >> 42))::int + 1)", int64(first), int64(last))
		return err
	})
	if err != nil {
		return err
	}
	return s.inPipeline(ctx, f)
}

// stamp tells the tasks that were stored when they were.
func stamp(answers []SubmitAnswer, createdAt time.Time) {
	for i := range answers {
		if answers[i].Refused == nil && !answers[i].AlreadySubmitted {
			answers[i].CreatedAt = createdAt
		}
	}
}

// missingPartition tells a row that no partition takes. It is a check violation without a constraint's name.
func missingPartition(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == pgerrcode.CheckViolation && pgErr.ConstraintName == ""
}

// claimKeys claims the batch's idempotency keys and answers the tasks whose key was used before. The rest is to be stored.
func (s *Store) claimKeys(ctx context.Context, p *pipeline, namespaceID int32, tasks []NewTask, answers []SubmitAnswer) (fresh []*NewTask, refused bool, err error) {
	first := map[string]int{} // key → the task of this batch that claims it
	var keys []string
	for i := range tasks {
		key := tasks[i].IdempotencyKey
		if _, again := first[key]; key != "" && !again {
			first[key] = i
			keys = append(keys, key)
		}
	}
	taken := map[string]usedKey{}
	if len(keys) > 0 {
		if taken, err = s.usedKeys(ctx, p, namespaceID, tasks, first, keys); err != nil {
			return nil, false, err
		}
	}
	for i := range tasks {
		t := &tasks[i]
		used, ok := taken[t.IdempotencyKey]
		if f, again := first[t.IdempotencyKey]; !ok && again && f != i {
			// Twice in one batch: the later ones are answered like a repetition of the first.
			used, ok = usedKey{digest: tasks[f].Digest, id: tasks[f].ID}, true
		}
		switch {
		case !ok:
			fresh = append(fresh, t)
			answers[i].TaskID = t.ID
		case bytes.Equal(used.digest, t.Digest):
			answers[i].Submitted = task.Submitted{TaskID: used.id, AlreadySubmitted: true}
		default:
			answers[i].Refused = task.Refuse(task.IdempotencyKeyReused, "the idempotency key was used for another task").
				With("task_id", used.id.String())
			refused = true
		}
	}
	return fresh, refused, nil
}

type usedKey struct {
	digest []byte
	id     task.ID
}

func (s *Store) usedKeys(ctx context.Context, p *pipeline, namespaceID int32, tasks []NewTask, first map[string]int, keys []string) (map[string]usedKey, error) {
	slices.Sort(keys)
	digests, ids := make([][]byte, len(keys)), make([]int64, len(keys))
	for i, key := range keys {
		digests[i], ids[i] = tasks[first[key]].Digest, int64(tasks[first[key]].ID)
	}
	claimed := map[string]bool{}
	b := &pgx.Batch{}
	each(b, "insert_submit_keys", func(rows pgx.Rows) error {
		var key string
		err := rows.Scan(&key)
		claimed[key] = true
		return err
	}, namespaceID, keys, digests, ids, s.at())
	if err := p.send(ctx, b); err != nil {
		return nil, err
	}
	if len(claimed) == len(keys) {
		return nil, nil //nolint:nilnil // none was used before
	}
	missing := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return claimed[key] })
	used := map[string]usedKey{}
	b = &pgx.Batch{}
	each(b, "find_submit_keys", func(rows pgx.Rows) error {
		var (
			key string
			u   usedKey
			id  int64
		)
		err := rows.Scan(&key, &u.digest, &id)
		u.id = task.ID(id)
		used[key] = u
		return err
	}, namespaceID, missing)
	if err := p.send(ctx, b); err != nil {
		return nil, err
	}
	if len(used) != len(missing) {
		return nil, errAgain // a key was dropped by retention in between
	}
	return used, nil
}

// Submitted finds the task that an idempotency key made, and the digest of the body it was made of; ok is false when none did.
func (s *Store) Submitted(ctx context.Context, namespaceID int32, key string) (id task.ID, digest []byte, ok bool, err error) {
	err = s.Cold.QueryRow(ctx, sqlText("find_submit_keys"), namespaceID, []string{key}).Scan(&key, &digest, &id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil, false, nil
	}
	return id, digest, err == nil, err
}

// submitRows are submit.sql's arrays.
type submitRows struct {
	id                           []int64
	name                         []string
	templateName, templateVer    []*string
	context                      []string
	labels                       []*string
	stepCount                    []int32
	notBefore, deadline          []*time.Time
	trace                        []*string
	createdBy                    []string
	stepTask                     []int64
	stepNo, lane                 []int32
	stepName                     []string
	retryLimit                   []int32
	retryable                    []bool
	maxLost                      []int32
	parents, children            []*string
	joins, joinStripes, joinNeed []*string
	initial                      []*time.Duration
	multiplier                   []*float64
	maximum                      []*time.Duration
	jitter                       []*float64
	maxRetryAfter, lease         []*time.Duration
	runTimeout, maxElapsed       []*time.Duration
	nonRetryable, handlerConfig  []*string
	rootTask                     []int64
	rootNo, rootLane             []int32
	rootNotBefore                []*time.Time
}

// queueSubmit stores tasks, with their steps unless these were copied before.
func (s *Store) queueSubmit(b *pgx.Batch, namespaceID int32, tasks []*NewTask, copied bool, createdAt *time.Time, change *Change) {
	var r submitRows
	for _, t := range tasks {
		r.addTask(t)
		r.addRoots(t)
		if !copied {
			r.addSteps(t)
		}
	}
	each(b, "submit", func(rows pgx.Rows) error {
		var (
			w   Wake
			seq *int64
		)
		err := rows.Scan(&w.LaneID, &seq, &w.Count, &w.DueAt, createdAt)
		w.Seq = deref(seq)
		change.Wake = append(change.Wake, w)
		return err
	}, slices.Concat(
		[]any{s.at(), namespaceID, r.id}, alike(r.name), alikeOrNone(r.templateName), alikeOrNone(r.templateVer),
		[]any{r.context, ifAny(r.labels)}, alike(r.stepCount), []any{ifAny(r.notBefore), ifAny(r.deadline), ifAny(r.trace)}, alike(r.createdBy),
		[]any{r.stepTask}, alike(r.stepNo), alike(r.lane), alike(r.stepName), alike(r.retryLimit), alike(r.retryable), alike(r.maxLost),
		[]any{ifAny(r.parents)}, alikeOrNone(r.children), []any{
			ifAny(r.joins), ifAny(r.joinStripes), ifAny(r.joinNeed), ifAny(r.initial), ifAny(r.multiplier), ifAny(r.maximum),
			ifAny(r.jitter), ifAny(r.maxRetryAfter), ifAny(r.lease), ifAny(r.runTimeout), ifAny(r.maxElapsed),
			ifAny(r.nonRetryable), ifAny(r.handlerConfig), r.rootTask,
		}, alike(r.rootNo), alike(r.rootLane), []any{ifAny(r.rootNotBefore)},
	)...)
}

// ifAny is an array argument of which most calls use no element: an array of NULLs costs as much as one of values, and none
// at all, which unnest pads with NULLs, costs nothing.
func ifAny[T any](column []*T) []*T {
	for _, v := range column {
		if v != nil {
			return column
		}
	}
	return nil
}

// alike is the two arguments of a column that may be the same for all rows: the value of all, or the array of theirs. Each
// element that is sent costs about a tenth of a microsecond.
func alike[T comparable](column []T) []any {
	return alikeBy(column, func(a, b T) bool { return a == b })
}

// alikeBy is alike by a comparison of one's own.
func alikeBy[T any](column []T, equal func(a, b T) bool) []any {
	if len(column) == 0 {
		return []any{nil, nil}
	}
	for _, v := range column {
		if !equal(v, column[0]) {
			return []any{nil, column}
		}
	}
	return []any{column[0], nil}
}

// alikeOrNone is alike and ifAny.
func alikeOrNone(column []*string) []any {
	if ifAny(column) == nil {
		return []any{nil, nil}
	}
	return alikeBy(column, func(a, b *string) bool { return a != nil && b != nil && *a == *b })
}

func (r *submitRows) addTask(t *NewTask) {
	r.id, r.name = append(r.id, int64(t.ID)), append(r.name, t.Name)
	r.templateName, r.templateVer = append(r.templateName, orNil(t.TemplateName)), append(r.templateVer, orNil(t.TemplateVersion))
	r.context, r.labels = append(r.context, t.Context), append(r.labels, textArray(t.Labels))
	r.stepCount = append(r.stepCount, int32(len(t.Steps))) //nolint:gosec // ≤ 10,000
	r.notBefore, r.deadline = append(r.notBefore, t.NotBefore), append(r.deadline, t.Deadline)
	r.trace, r.createdBy = append(r.trace, orNil(t.TraceContext)), append(r.createdBy, t.Actor)
}

func (r *submitRows) addSteps(t *NewTask) {
	edges := childEdges(t.Steps)
	for i, step := range t.Steps {
		r.addStep(t, i, step, &edges[i])
	}
}

// addRoots adds the steps that are to be made runnable.
func (r *submitRows) addRoots(t *NewTask) {
	for i, step := range t.Steps {
		if len(step.Parents) == 0 {
			r.rootTask, r.rootNo, r.rootLane = append(r.rootTask, int64(t.ID)), append(r.rootNo, int32(i+1)), append(r.rootLane, t.Lanes[i])
			r.rootNotBefore = append(r.rootNotBefore, t.NotBefore)
		}
	}
}

func (r *submitRows) addStep(t *NewTask, i int, s task.StepSpec, e *edgesOut) {
	r.stepTask, r.stepNo, r.lane = append(r.stepTask, int64(t.ID)), append(r.stepNo, int32(i+1)), append(r.lane, t.Lanes[i]) //nolint:gosec // ≤ 10,000
	r.stepName, r.retryLimit = append(r.stepName, s.Name), append(r.retryLimit, int32(s.RetryLimit))                         //nolint:gosec // ≤ 1,000
	r.retryable, r.maxLost = append(r.retryable, s.Retryable), append(r.maxLost, int32(s.MaxLostLeases))                     //nolint:gosec // checked
	r.parents, r.children = append(r.parents, intArray(s.Parents)), append(r.children, intArray(e.children))
	r.joins, r.joinStripes, r.joinNeed = append(r.joins, intArray(e.joins)), append(r.joinStripes, intArray(e.stripe)), append(r.joinNeed, intArray(e.need))
	r.initial, r.multiplier, r.maximum, r.jitter = append(r.initial, s.Initial), append(r.multiplier, s.Multiplier), append(r.maximum, s.Max), append(r.jitter, s.Jitter)
	r.maxRetryAfter, r.lease = append(r.maxRetryAfter, s.MaxRetryAfter), append(r.lease, s.Lease)
	r.runTimeout, r.maxElapsed = append(r.runTimeout, s.RunTimeout), append(r.maxElapsed, s.MaxElapsed)
	r.nonRetryable, r.handlerConfig = append(r.nonRetryable, textArray(s.NonRetryable)), append(r.handlerConfig, orNil(s.HandlerConfig))
}

// edgesOut is what a step row says of its children.
type edgesOut struct {
	children, joins, stripe, need []int
}

// childEdges turns the parents of each step into the children of each, the task's end being a child of every leaf.
func childEdges(steps []task.StepSpec) []edgesOut {
	out := make([]edgesOut, len(steps))
	leaf := make([]bool, len(steps))
	for i := range leaf {
		leaf[i] = true
	}
	link := func(child int, parents []int) {
		for k, p := range parents {
			e := &out[p-1]
			switch n := len(parents); {
			case n == 1:
				e.children = append(e.children, child)
			case n <= stripeAbove:
				e.joins, e.stripe, e.need = append(e.joins, child), append(e.stripe, -1), append(e.need, n)
			default:
				// Stripe k takes every 16th parent; the first n mod 16 of them take one more.
				need := n / stripes
				if k%stripes < n%stripes {
					need++
				}
				e.joins, e.stripe, e.need = append(e.joins, child), append(e.stripe, k%stripes), append(e.need, need)
			}
		}
	}
	for i, s := range steps {
		for _, p := range s.Parents {
			leaf[p-1] = false
		}
		link(i+1, s.Parents)
	}
	var leaves []int
	for i, isLeaf := range leaf {
		if isLeaf {
			leaves = append(leaves, i+1)
		}
	}
	link(taskEnd, leaves)
	return out
}

// intArray writes an array literal; nil for none. Arrays of arrays travel as text, since an SQL array of arrays would
// have to be rectangular.
func intArray(v []int) *string {
	if len(v) == 0 {
		return nil
	}
	b := make([]byte, 0, 2+6*len(v))
	b = append(b, '{')
	for i, n := range v {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(n), 10)
	}
	s := string(append(b, '}'))
	return &s
}

// textArray writes an array literal of strings; nil for none.
func textArray(v []string) *string {
	if len(v) == 0 {
		return nil
	}
	quoted := make([]string, len(v))
	for i, s := range v {
		quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	s := "{" + strings.Join(quoted, ",") + "}"
	return &s
}
