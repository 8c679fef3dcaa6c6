package main

import (
	"strings"
	"testing"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

func TestAHandlerIsPausedAndResumed(t *testing.T) {
	p := newPerson(t)
	if got := p.ok("pause", "call", "--reason", "the ledger is being corrected", "--for", "1h"); !strings.HasPrefix(got, "handler call is paused until 20") {
		t.Errorf("pause said %q", got)
	}
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("calling.yaml", "steps: [{name: call}]\n")))
	step := p.steps(id)[0]
	if step.GetReadyForExecution() || step.GetWaitingFor() != taskerv1.WaitingFor_WAITING_FOR_PAUSED || step.GetWaitingUntil() == nil {
		t.Errorf("the step of a paused handler is %v", step)
	}
	if got, want := p.ok("pause", "--all", "--reason", "moving the database"), "namespace "+p.env["TASKER_NAMESPACE"]+" is paused until it is resumed\n"; got != want {
		t.Errorf("pause said %q", got)
	}
	list := answer(p, &taskerv1.ListPausesResponse{}, "pauses").GetPauses()
	if len(list) != 2 || list[0].GetHandler() != "" || list[1].GetReason() != "the ledger is being corrected" {
		t.Errorf("the pauses are %v", list)
	}
	if table := p.ok("pauses", "--limit", "1"); !strings.HasPrefix(table, "handler") || strings.Count(table, "\n") != 2 {
		t.Errorf("one of them is\n%s", table)
	}
	if got := p.ok("resume", "call", "--reason", "it is right again"); got != "handler call is resumed\n" {
		t.Errorf("resume said %q", got)
	}
	if got := p.ok("resume", "call"); got != "handler call was not paused\n" {
		t.Errorf("a second resume said %q", got)
	}
	if step := p.steps(id)[0]; step.GetWaitingFor() != taskerv1.WaitingFor_WAITING_FOR_PAUSED || step.GetWaitingUntil() != nil {
		t.Errorf("the step of a paused namespace is %v", step)
	}
	p.ok("resume", "--all")
	p.work("true", "--handler", "call")
	p.ok("task", "watch", id)
	p.refused("VALIDATION", "pause", "call", "--reason", "r", "--until", "-1h")
	p.refused("VALIDATION", "pause", "no spaces", "--reason", "r")
	for _, args := range [][]string{
		{"pause", "--reason", "r"},
		{"pause", "call", "--all", "--reason", "r"},
		{"pause", "call"},
		{"resume"},
		{"pause", "", "--reason", "r"},
		{"pause", "call", "--reason", "r", "--for", "1h", "--until", "1h"},
		{"pause", "call", "--reason", "r", "--for", "-1h"},
	} {
		if _, _, code := p.try(args...); code != 2 {
			t.Errorf("tasker %q exits with %d, want 2", args, code)
		}
	}
}
