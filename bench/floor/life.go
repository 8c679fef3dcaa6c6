package floor

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// The statements of a life. Each file says what it does and why it is written so.
var (
	//go:embed sql/submit.sql
	submitSQL string
	//go:embed sql/claim.sql
	claimSQL string
	//go:embed sql/lock_leases.sql
	lockLeasesSQL string
	//go:embed sql/complete.sql
	completeSQL string
)

const (
	contextBytes = 100
	resultBytes  = 32
	leaseLength  = 30 * time.Second
)

// submit sends count tasks of the same graph in one transaction. Parents lists, for each step from number 1, the
// numbers of its parents.
func (r *run) submit(ctx context.Context, conn *pgx.Conn, lane int, count int, parents [][]int) error {
	sole, joined, needs := children(parents)
	var (
		taskIDs, stepTaskIDs          []int64
		counts, stepNos, lanes        []int
		soleText, joinedText, needsIn []*string
		contexts                      [][]byte
		isRoot                        []bool
	)
	payload := make([]byte, contextBytes)
	for range count {
		r.tasks++
		taskIDs, counts = append(taskIDs, r.tasks), append(counts, len(parents))
		for i := range parents {
			stepTaskIDs, stepNos, lanes = append(stepTaskIDs, r.tasks), append(stepNos, i+1), append(lanes, lane)
			soleText, joinedText, needsIn = append(soleText, sole[i]), append(joinedText, joined[i]), append(needsIn, needs[i])
			contexts, isRoot = append(contexts, payload), append(isRoot, len(parents[i]) == 0)
		}
	}
	r.steps += int64(len(stepNos))
	_, err := conn.Exec(ctx, submitSQL, taskIDs, counts, stepTaskIDs, stepNos, lanes, soleText, joinedText, needsIn, contexts, isRoot)
	if err != nil {
		return fmt.Errorf("submitting: %w", err)
	}
	return nil
}

// children turns lists of parents into what the step rows carry, as array literals; nil is no child of that sort.
// The task itself, number 0, is the child of every step that has no other.
func children(parents [][]int) (sole, joined, needs []*string) {
	soleOf, joinedOf, needsOf := make([][]int, len(parents)), make([][]int, len(parents)), make([][]int, len(parents))
	link := func(child int, of []int) {
		for _, parent := range of {
			if len(of) == 1 {
				soleOf[parent-1] = append(soleOf[parent-1], child)
			} else {
				joinedOf[parent-1] = append(joinedOf[parent-1], child)
				needsOf[parent-1] = append(needsOf[parent-1], len(of))
			}
		}
	}
	for i, of := range parents {
		link(i+1, of)
	}
	var sinks []int
	for i := range parents {
		if len(soleOf[i])+len(joinedOf[i]) == 0 {
			sinks = append(sinks, i+1)
		}
	}
	link(0, sinks)
	for i := range parents {
		sole, joined, needs = append(sole, literal(soleOf[i])), append(joined, literal(joinedOf[i])), append(needs, literal(needsOf[i]))
	}
	return sole, joined, needs
}

func literal(numbers []int) *string {
	if len(numbers) == 0 {
		return nil
	}
	text := "{" + strings.ReplaceAll(strings.Trim(fmt.Sprint(numbers), "[]"), " ", ",") + "}"
	return &text
}

// dispatch is a step under lease.
type dispatch struct {
	taskID  int64
	stepNo  int
	seq     int64
	token   [16]byte
	context []byte
}

// turn is one transaction of a loop: report what is held, then claim up to limit steps of the lane behind a seq.
type turn struct {
	lane, session int
	after         int64
	limit         int
	report        []dispatch
}

// run sends the whole transaction in one round trip and returns what was granted. Every report must be accepted.
func (t turn) run(ctx context.Context, conn *pgx.Conn) (granted []dispatch, err error) {
	batch := &pgx.Batch{}
	if len(t.report) > 0 {
		t.queueReport(batch)
	}
	tokens, sessions := make([][16]byte, t.limit), make([]int, t.limit)
	for i := range tokens {
		rand.Read(tokens[i][:])
		sessions[i] = t.session
	}
	batch.Queue(claimSQL, []int{t.lane}, []int64{t.after}, []int{t.limit}, tokens, sessions, leaseLength)
	answers := conn.SendBatch(ctx, batch)
	// The transaction has committed only when Close says so.
	defer func() { err = errors.Join(err, answers.Close()) }()
	if len(t.report) > 0 {
		if _, err := answers.Exec(); err != nil {
			return nil, fmt.Errorf("locking leases: %w", err)
		}
		var accepted []int64
		var woken, finished, moved int64
		if err := answers.QueryRow().Scan(&accepted, &woken, &finished, &moved); err != nil {
			return nil, fmt.Errorf("completing: %w", err)
		}
		if len(accepted) != len(t.report) || moved != int64(len(t.report)) {
			return nil, fmt.Errorf("completing: %d of %d results accepted, %d leases moved", len(accepted), len(t.report), moved)
		}
	}
	rows, err := answers.Query()
	if err != nil {
		return nil, fmt.Errorf("claiming: %w", err)
	}
	granted = make([]dispatch, 0, t.limit)
	var slot int64
	var seq *int64
	var dispatches, attempts int32
	var name string
	var d dispatch
	_, err = pgx.ForEachRow(rows, []any{&slot, &seq, &d.taskID, &d.stepNo, &dispatches, &attempts, &name, &d.context}, func() error {
		if d.seq = 0; seq != nil {
			d.seq = *seq
		}
		d.token = tokens[slot-1]
		granted = append(granted, d)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("claiming: %w", err)
	}
	return granted, nil
}

// queueReport adds the two statements that complete the held steps, in the order of their keys.
func (t turn) queueReport(batch *pgx.Batch) {
	slices.SortFunc(t.report, func(a, b dispatch) int {
		return cmp.Or(cmp.Compare(a.taskID, b.taskID), cmp.Compare(a.stepNo, b.stepNo))
	})
	n := len(t.report)
	taskIDs, stepNos, tokens := make([]int64, n), make([]int, n), make([][16]byte, n)
	digests, results := make([][]byte, n), make([][]byte, n)
	for i, d := range t.report {
		taskIDs[i], stepNos[i], tokens[i] = d.taskID, d.stepNo, d.token
		results[i] = make([]byte, resultBytes)
		digest := sha256.Sum256(results[i])
		digests[i] = digest[:]
	}
	batch.Queue(lockLeasesSQL, taskIDs, stepNos, tokens)
	batch.Queue(completeSQL, taskIDs, stepNos, tokens, digests, results)
}
