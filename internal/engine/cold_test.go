package engine_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

func mustRefuse(t *testing.T, what string, err error, reason task.Reason) {
	t.Helper()
	if !errors.Is(err, &task.Error{Reason: reason}) {
		t.Errorf("%s: got %v, want %s", what, err, reason)
	}
}

func submitAs(t *testing.T, e *engine.Engine, sub task.Submission) task.ID {
	t.Helper()
	sub.Context = "{}"
	answers, err := e.Submit(t.Context(), []*task.Submission{&sub}, false)
	if err != nil {
		t.Fatal(err)
	}
	return answers[0].TaskID
}

// pages reads a list to its end, and checks that no page is larger than asked for.
func pages[T any](t *testing.T, size int, list func(task.PageRequest) (task.Page[T], error)) (all []T, tokens []string) {
	t.Helper()
	token := ""
	for range 1000 {
		page, err := list(task.PageRequest{Size: size, Token: token})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Items) > size {
			t.Fatalf("%d items on a page of %d", len(page.Items), size)
		}
		all = append(all, page.Items...)
		if page.NextToken == "" {
			return all, tokens
		}
		token = page.NextToken
		tokens = append(tokens, token)
	}
	t.Fatal("the list has no end")
	return nil, nil
}

func TestListTasksPagesByItsFilterOnly(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	var want []task.ID
	for i := range 25 {
		sub := task.Submission{Namespace: "shop", Name: "t", Steps: []task.StepSpec{spec("a")}}
		if i%2 == 0 {
			sub.Labels = []string{"city=Oslo", fmt.Sprintf("n=%d", i)}
			sub.TemplateName, sub.TemplateVersion = "mail", "1.0.0"
		}
		id := submitAs(t, e, sub)
		if i%2 == 0 {
			want = append([]task.ID{id}, want...)
		}
		submitAs(t, e, task.Submission{Namespace: "other", Name: "t", Labels: []string{"city=Oslo"}, Steps: []task.StepSpec{spec("a")}})
	}
	if _, err := e.CancelTask(t.Context(), want[0], store.Act{}); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]task.Filter{
		"labels":           {Namespace: "shop", Labels: []string{"city=Oslo"}},
		"template":         {Namespace: "shop", TemplateName: "mail"},
		"template version": {Namespace: "shop", TemplateName: "mail", TemplateVersion: "1.0.0"},
	} {
		got, tokens := pages(t, 4, func(r task.PageRequest) (task.Page[task.View], error) { return e.ListTasks(t.Context(), f, r) })
		var ids []task.ID
		for _, v := range got {
			ids = append(ids, v.ID)
		}
		if fmt.Sprint(ids) != fmt.Sprint(want) {
			t.Errorf("%s: got %v, want %v", name, ids, want)
		}
		_, err := e.ListTasks(t.Context(), task.Filter{Namespace: "other"}, task.PageRequest{Token: tokens[0]})
		mustRefuse(t, "a token under another filter", err, task.BadPageToken)
	}
	got, _ := pages(t, 4, func(r task.PageRequest) (task.Page[task.View], error) {
		return e.ListTasks(t.Context(), task.Filter{Namespace: "shop", States: []task.State{task.Cancelled}}, r)
	})
	if len(got) != 1 || got[0].ID != want[0] {
		t.Errorf("cancelled: got %v", got)
	}
	future := time.Now().Add(time.Hour)
	none, _ := pages(t, 4, func(r task.PageRequest) (task.Page[task.View], error) {
		return e.ListTasks(t.Context(), task.Filter{Namespace: "shop", CreatedFrom: &future}, r)
	})
	if len(none) != 0 {
		t.Errorf("created in the future: %d", len(none))
	}
	page, err := e.ListTasks(t.Context(), task.Filter{Namespace: "nobody"}, task.PageRequest{})
	if err != nil || len(page.Items) != 0 || page.NextToken != "" {
		t.Errorf("an unknown namespace has no tasks: %+v, %v", page, err)
	}
	for _, token := range []string{"x", "AAAA", "AAAAAAAAAAAAAAAA", strings.Repeat("A", 4096), "%", "e30"} {
		_, err := e.ListTasks(t.Context(), task.Filter{}, task.PageRequest{Token: token})
		mustRefuse(t, "token "+token[:1], err, task.BadPageToken)
	}
}

func TestListStepsPagesAndFilters(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	steps := make([]task.StepSpec, 30)
	for i := range steps {
		steps[i] = spec(fmt.Sprintf("s%02d", i+1))
		if i > 0 {
			steps[i].Parents = []int{1}
		}
	}
	id := submit(t, e, steps...)
	got, tokens := pages(t, 7, func(r task.PageRequest) (task.Page[task.StepView], error) {
		return e.ListSteps(t.Context(), id, nil, r)
	})
	if len(got) != 30 || len(tokens) != 4 {
		t.Fatalf("%d steps on %d pages", len(got), len(tokens)+1)
	}
	for i, s := range got {
		if s.ID != id.Step(i+1) || s.ReadyForExecution != (i == 0) {
			t.Errorf("step %d is %+v", i+1, s)
		}
	}
	pending, _ := pages(t, 7, func(r task.PageRequest) (task.Page[task.StepView], error) {
		return e.ListSteps(t.Context(), id, []task.StepState{task.StepPending}, r)
	})
	if len(pending) != 30 {
		t.Errorf("%d pending", len(pending))
	}
	failed, _ := pages(t, 7, func(r task.PageRequest) (task.Page[task.StepView], error) {
		return e.ListSteps(t.Context(), id, []task.StepState{task.StepError}, r)
	})
	if len(failed) != 0 {
		t.Errorf("%d in error", len(failed))
	}
	_, err := e.ListSteps(t.Context(), id, []task.StepState{task.StepError}, task.PageRequest{Token: tokens[0]})
	mustRefuse(t, "a token under another filter", err, task.BadPageToken)
	_, err = e.ListSteps(t.Context(), task.NewID(0, 1<<30), nil, task.PageRequest{})
	mustRefuse(t, "unknown task", err, task.TaskNotFound)
}

func TestUnknownIDsAreNotFound(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	nowhere := task.NewID(0, 1<<30)
	ctx, act := t.Context(), store.Act{}
	_, _, err := e.GetTask(ctx, nowhere, true, true)
	mustRefuse(t, "GetTask with leaves", err, task.TaskNotFound)
	_, _, err = e.GetTask(ctx, nowhere, false, false)
	mustRefuse(t, "GetTask", err, task.TaskNotFound)
	_, err = e.GetStep(ctx, nowhere.Step(1), true)
	mustRefuse(t, "GetStep", err, task.StepNotFound)
	_, err = e.ListStepAttempts(ctx, nowhere.Step(1), task.PageRequest{})
	mustRefuse(t, "ListStepAttempts", err, task.StepNotFound)
	_, err = e.CancelTask(ctx, nowhere, act)
	mustRefuse(t, "CancelTask", err, task.TaskNotFound)
	mustRefuse(t, "PurgeTask", e.PurgeTask(ctx, nowhere, act), task.TaskNotFound)
	_, err = e.RetryStep(ctx, nowhere.Step(1), act)
	mustRefuse(t, "RetryStep", err, task.StepNotFound)
	_, err = e.ResolveStep(ctx, nowhere.Step(1), act)
	mustRefuse(t, "ResolveStep", err, task.StepNotFound)
	_, err = e.CompleteStep(ctx, nowhere.Step(1), "", act)
	mustRefuse(t, "CompleteStep", err, task.StepNotFound)
	_, err = e.GetTemplate(ctx, "nobody", "mail", "")
	mustRefuse(t, "GetTemplate", err, task.TemplateNotFound)
	if n, next, err := e.BulkRetrySteps(ctx, task.BulkRetry{Namespace: "nobody", Handlers: []string{"a"}}, ""); n != 0 || next != "" || err != nil {
		t.Errorf("BulkRetrySteps in an unknown namespace: %d, %q, %v", n, next, err)
	}
}

func TestGetTaskHandsOutLeafResultsUpToABound(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := open(t, e, 10, "a", "b", "c", "d")
	id := submit(t, e, spec("a"), spec("b", 1), spec("c", 1), spec("d", 1))
	succeed(t, e, nextStep(t, st), `{"root":1}`)
	big := `{"x":"` + strings.Repeat("y", 900_000) + `"}`
	for range 3 {
		r := nextStep(t, st)
		results := `{"leaf":"` + r.StepName + `"}`
		if r.StepName != "b" {
			results = big
		}
		succeed(t, e, r, results)
	}
	v, leaves, err := e.GetTask(t.Context(), id, true, true)
	if err != nil {
		t.Fatal(err)
	}
	if v.State != task.Complete || v.Context != `{"k":1}` || v.EndedAt == nil {
		t.Errorf("task is %+v", v)
	}
	if len(leaves.Results) != 2 || leaves.Results[0] != (task.DependencyResult{Name: "b", Results: `{"leaf":"b"}`}) || fmt.Sprint(leaves.Omitted) != "[d]" {
		t.Errorf("%d leaves, omitted %v", len(leaves.Results), leaves.Omitted)
	}
}

func TestGetDependencyResultsPagesWithinItsBound(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := open(t, e, 100, "p", "join")
	const parents = 20
	steps := make([]task.StepSpec, parents, parents+1)
	join := spec("join")
	for i := range steps {
		steps[i] = spec("p")
		steps[i].Name = fmt.Sprintf("p%02d", i+1)
		join.Parents = append(join.Parents, i+1)
	}
	submit(t, e, append(steps, join)...)
	results := `{"x":"` + strings.Repeat("y", 500_000) + `"}`
	for range parents {
		succeed(t, e, nextStep(t, st), results)
	}
	g := nextStep(t, st)
	if g.StepName != "join" {
		t.Fatalf("got %s", g.StepName)
	}
	all, tokens := pages(t, 1000, func(r task.PageRequest) (task.Page[task.DependencyResult], error) {
		page, err := e.GetDependencyResults(t.Context(), g.Token, nil, r)
		var size int
		for _, d := range page.Items {
			size += len(d.Results)
		}
		if size > 3_500_000 {
			t.Errorf("a page of %d bytes", size)
		}
		return page, err
	})
	if len(all) != parents || len(tokens) != 3 {
		t.Fatalf("%d results on %d pages", len(all), len(tokens)+1)
	}
	for i, d := range all {
		if d.Name != steps[i].Name || d.Results != results {
			t.Errorf("result %d is of %s", i, d.Name)
		}
	}
	some, err := e.GetDependencyResults(t.Context(), g.Token, []string{"p07", "nobody", "p03"}, task.PageRequest{Size: 1})
	if err != nil || len(some.Items) != 1 || some.Items[0].Name != "p03" || some.NextToken == "" {
		t.Errorf("by name: %d items, %v", len(some.Items), err)
	}
	succeed(t, e, g, "{}")
	_, err = e.GetDependencyResults(t.Context(), g.Token, nil, task.PageRequest{})
	mustRefuse(t, "a lease that ended", err, task.LeaseLost)
}

func TestListWorkersShowsWhatTheyHold(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := open(t, e, 7, "a", "b")
	submit(t, e, spec("a"))
	nextStep(t, st)
	page, err := e.ListWorkers(t.Context(), "", "b", task.PageRequest{})
	if err != nil || len(page.Items) != 1 {
		t.Fatalf("%+v, %v", page, err)
	}
	if w := page.Items[0]; w.WorkerID != "w" || w.MaxInFlight != 7 || w.InFlight != 1 || w.ClosedAt != nil {
		t.Errorf("worker is %+v", w)
	}
	if page, err := e.ListWorkers(t.Context(), "", "c", task.PageRequest{}); err != nil || len(page.Items) != 0 {
		t.Errorf("%+v, %v", page, err)
	}
}

func TestARetriedStepIsDispatchedAtOnce(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := open(t, e, 5, "a", "b")
	id := submit(t, e, spec("a"), spec("b", 1))
	report(t, e, task.Report{Token: nextStep(t, st).Token, Outcome: task.PermanentFailure, Digest: [32]byte{1}})
	v, err := e.RetryStep(t.Context(), id.Step(1), store.Act{Actor: "ops"})
	if err != nil || v.State != task.StepPending || v.Epoch != 2 {
		t.Fatalf("%+v, %v", v, err)
	}
	again := nextStep(t, st)
	if again.Token.Step != id.Step(1) || again.Attempt != 1 || again.Dispatch != 2 {
		t.Fatalf("got %+v", again)
	}
	report(t, e, task.Report{Token: again.Token, Outcome: task.PermanentFailure, Digest: [32]byte{2}})
	if _, err := e.CompleteStep(t.Context(), id.Step(1), "", store.Act{}); err != nil {
		t.Fatal(err)
	}
	b := nextStep(t, st)
	if b.StepName != "b" || len(b.Dependencies) != 1 || b.Dependencies[0].Results != "{}" {
		t.Fatalf("got %+v", b)
	}
}
