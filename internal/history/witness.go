package history

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// runKey names one dispatch of one step.
type runKey struct {
	stepID   int64
	dispatch int
}

// witness is what journals and history say of one dispatch.
type witness struct {
	grants   map[string]*grant // by the digest of their token; more than one only after a crash
	isKnown  bool              // the history has the dispatch
	accepted string            // the outcome that the history accepted
	free     bool              // and did not count
	owed     bool              // or could not but count: too many before it did not
}

// grant is what workers saw of a dispatch under one token.
type grant struct {
	received bool
	sent     []string // outcomes that workers sent
	acked    []string // outcomes that were acknowledged
	lost     bool     // a report was answered LEASE_LOST
	skip     *bool    // whether what was sent asked not to be counted; nil: not written down
}

func (w *witness) grant(token string) *grant {
	g := w.grants[token]
	if g == nil {
		g = &grant{}
		w.grants[token] = g
	}
	return g
}

// received is how many tokens workers received.
func (w *witness) received() (n int) {
	for _, g := range w.grants {
		if g.received {
			n++
		}
	}
	return n
}

// sentUnder is under how many tokens something was reported.
func (w *witness) sentUnder() (n int) {
	for _, g := range w.grants {
		if len(g.sent) > 0 {
			n++
		}
	}
	return n
}

type submitKey struct{ namespace, key string }

// journals are what workers and clients saw.
type journals struct {
	runs       map[runKey]*witness
	probes     map[runKey]bool // whether workers were told that a run is a probe; only runs of which they were told either
	hasWorkers bool
	hasClients bool

	sent        map[submitKey]bool
	keylessSent int
	acked       map[int64]submitKey // tasks that submits were answered with
	unkeyedAcks int                 // tasks among them whose submit bore no key
	ackedFor    map[submitKey][]int64

	submitted map[int64]bool // tasks that the history has
	purged    map[int64]bool
}

// readJournals reads all files. A report names its lease by token: the frame that brought it tells which run that is.
func (c *checker) readJournals(paths []string) error {
	j := &c.journals
	*j = journals{
		runs: map[runKey]*witness{}, sent: map[submitKey]bool{}, acked: map[int64]submitKey{}, ackedFor: map[submitKey][]int64{},
		submitted: map[int64]bool{}, purged: map[int64]bool{}, probes: map[runKey]bool{},
	}
	byToken := map[string]runKey{}
	var reports []Entry
	for _, path := range paths {
		err := ReadJournal(path, func(e Entry) error {
			switch e.Kind {
			case FrameReceived:
				key := runKey{e.StepID, e.Dispatch}
				byToken[e.Token] = key
				j.run(key).grant(e.Token).received = true
				if e.Probe != nil {
					j.probes[key] = *e.Probe
				}
				c.r.Frames++
				j.hasWorkers = true
			case ReportSent, ReportAnswered:
				reports = append(reports, e)
				j.hasWorkers = true
			case SubmitSent, SubmitAnswered:
				j.submit(c, e)
			default:
				return fmt.Errorf("unknown kind %q", e.Kind)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, e := range reports {
		key, known := byToken[e.Token]
		if !known {
			key = runKey{e.StepID, e.Dispatch}
		}
		j.report(c, key, e)
	}
	return nil
}

func (j *journals) run(key runKey) *witness {
	w := j.runs[key]
	if w == nil {
		w = &witness{grants: map[string]*grant{}}
		j.runs[key] = w
	}
	return w
}

func (j *journals) report(c *checker, key runKey, e Entry) {
	g := j.run(key).grant(e.Token)
	switch {
	case e.Kind == ReportSent:
		c.r.Reports++
		g.sent = append(g.sent, e.Outcome)
		g.skip = e.Skip
	case e.Reason == "":
		c.r.AckedReports++
		if e.AlreadyRecorded {
			c.r.RepeatedReports++
		}
		g.acked = append(g.acked, e.Outcome)
	case e.Reason == "LEASE_LOST":
		g.lost = true
	}
}

// mayBeForgotten tells whether a dispatch was granted once before, or is missing, since PostgreSQL forgot it. Only what a
// worker reported can come late.
func (c *checker) mayBeForgotten(key runKey, isKnown bool) bool {
	if !c.crashed || !c.journals.hasWorkers {
		return c.crashed
	}
	w := c.journals.runs[key]
	return w != nil && (w.sentUnder() > 1 || w.sentUnder() > 0 && !isKnown)
}

func (j *journals) submit(c *checker, e Entry) {
	j.hasClients = true
	key := submitKey{e.Namespace, e.Key}
	if key.namespace == "" {
		key.namespace = "default"
	}
	if e.Kind == SubmitSent {
		if e.Key == "" {
			j.keylessSent++
		} else {
			j.sent[key] = true
		}
		return
	}
	c.r.AckedSubmits++
	if _, known := j.acked[e.TaskID]; !known && e.Key == "" {
		j.unkeyedAcks++
	}
	j.acked[e.TaskID] = key
	if e.Key != "" && !slices.Contains(j.ackedFor[key], e.TaskID) {
		j.ackedFor[key] = append(j.ackedFor[key], e.TaskID)
	}
}

// sawTask notes a task of the history.
func (j *journals) sawTask(taskID int64, isSubmitted, isGone bool) {
	if isSubmitted && j.hasClients {
		j.submitted[taskID] = true
	}
	if isGone {
		j.purged[taskID] = true
	}
}

// sawStep notes the dispatches of a step and the reports accepted for it.
func (j *journals) sawStep(stepID int64, m *stepModel) {
	if !j.hasWorkers {
		return
	}
	for i := range m.dispatched {
		if w := j.runs[runKey{stepID, i + 1}]; w != nil {
			w.isKnown = true
		}
	}
	for _, a := range m.accepted {
		w := j.run(runKey{stepID, a.dispatch})
		w.accepted, w.free, w.owed = a.outcome, a.free, a.owed
	}
}

func (c *checker) readKeys(ctx context.Context, tx pgx.Tx) error {
	c.keys = map[submitKey]int64{}
	if !c.journals.hasClients {
		return nil
	}
	var (
		key    submitKey
		taskID int64
	)
	rows, _ := tx.Query(ctx, sqlText("submit_keys"))
	_, err := pgx.ForEachRow(rows, []any{&key.namespace, &key.key, &taskID}, func() error {
		c.keys[key] = taskID
		return nil
	})
	return err
}

// checkJournals holds the journals against the history.
func (c *checker) checkJournals() {
	for key, w := range c.journals.runs {
		taskID := key.stepID &^ (1<<14 - 1)
		if c.journals.purged[taskID] || c.isDropped(taskID) || c.daysGone && !w.isKnown {
			continue
		}
		c.checkRun(w, func(invariant, format string, args ...any) {
			c.r.add(Violation{invariant, taskID, key.stepID, key.dispatch, fmt.Sprintf(format, args...)})
		})
	}
	if c.journals.hasClients {
		c.checkSubmits()
	}
}

func (c *checker) checkRun(w *witness, violate func(invariant, format string, args ...any)) {
	received := w.received()
	switch {
	case received == 0:
	case c.crashed && w.isKnown:
		c.r.Forgotten += received - 1
	case c.crashed:
		c.r.Forgotten += received
	default:
		if received > 1 {
			violate("S3", "workers received it under %d different tokens", received)
		}
		if !w.isKnown {
			violate("S3", "a worker received it and the history does not have it")
		}
	}
	var sent []string
	holders := 0
	for _, token := range slices.Sorted(maps.Keys(w.grants)) {
		g := w.grants[token]
		for _, outcome := range g.acked {
			if outcome != w.accepted {
				violate("S8", "a worker's %s was acknowledged, the history has %s", outcome, orNothing(w.accepted))
			}
		}
		if len(g.acked) > 0 {
			holders++
		}
		sent = append(sent, g.sent...)
	}
	if holders > 1 {
		violate("S4", "reports under %d different tokens were acknowledged", holders)
	}
	if w.accepted == "" {
		return
	}
	if !slices.Contains(sent, w.accepted) {
		violate("S4", "the history accepted a %s that no worker sent (sent: %s)", w.accepted, orNothing(strings.Join(sent, ", ")))
		return
	}
	isTold := false // by a report under a token that was not taken for lost
	for _, g := range w.grants {
		if g.lost && len(g.acked) > 0 {
			isTold = false
			break
		}
		isTold = isTold || slices.Contains(g.sent, w.accepted) && !g.lost
		if g.skip != nil && w.accepted == "retryable_failure" && slices.Contains(g.sent, w.accepted) && (*g.skip && !w.owed) != w.free {
			violate("S5", "its worker asked that it does not count: %v; it did not count: %v", *g.skip, w.free)
		}
	}
	if !isTold {
		violate("S4", "its %s was accepted, and a report under its token answered LEASE_LOST", w.accepted)
	}
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func (c *checker) checkSubmits() {
	j := &c.journals
	violate := func(invariant string, taskID int64, format string, args ...any) {
		c.r.add(Violation{Invariant: invariant, TaskID: taskID, Message: fmt.Sprintf(format, args...)})
	}
	for _, id := range slices.Sorted(maps.Keys(j.acked)) {
		if !j.submitted[id] && !j.purged[id] && !c.isDropped(id) && !c.daysGone {
			violate("S7", id, "its submit was acknowledged, and there is no such task")
		}
	}
	for key, ids := range j.ackedFor {
		if len(ids) > 1 {
			violate("S9", ids[0], "key %q of %s was answered with %d tasks: %d", key.key, key.namespace, len(ids), ids)
		}
		if stored, known := c.keys[key]; known && stored != ids[0] {
			violate("S9", ids[0], "key %q of %s was answered with it and belongs to task %d", key.key, key.namespace, stored)
		}
	}
	keyed := make(map[int64]submitKey, len(c.keys))
	for key, id := range c.keys {
		keyed[id] = key
	}
	var strays []int64
	for id := range j.submitted {
		if _, acked := j.acked[id]; !acked && !j.sent[keyed[id]] && !j.purged[id] {
			strays = append(strays, id)
		}
	}
	// A submit without a key whose answer was lost made one task or none, and nobody can tell which.
	if unanswered := j.keylessSent - j.unkeyedAcks; len(strays) > max(unanswered, 0) {
		slices.Sort(strays)
		violate("S7", strays[0], "it and %d others were submitted by no client, %d submits without a key are unanswered", len(strays)-1, max(unanswered, 0))
	}
}
