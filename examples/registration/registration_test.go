package registration_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker/examples/registration"
)

// The seed and the number of users that the demo takes unless it is told otherwise.
const (
	seed  = 1
	users = 240
)

func TestPlanIsAFunctionOfItsArguments(t *testing.T) {
	for user := int64(1); user <= users; user++ {
		for _, step := range registration.Steps {
			one, two := registration.PlanFor(seed, step.Service, user), registration.PlanFor(seed, step.Service, user)
			if fmt.Sprint(one) != fmt.Sprint(two) {
				t.Fatalf("%s, user %d: %v and %v", step.Service, user, one, two)
			}
		}
	}
}

// Every kind of answer that the demo promises must be met by somebody, and every fate.
func TestPlansCoverEveryAnswerAndFate(t *testing.T) {
	answers := make(map[string]int)
	fates := make(map[registration.Fate]int)
	for user := int64(1); user <= users; user++ {
		for _, step := range registration.Steps {
			first := registration.PlanFor(seed, step.Service, user).Call(0)
			kind := fmt.Sprint(first.Status)
			switch {
			case first.AsDate:
				kind += " date"
			case first.RetryAfter > 0:
				kind += " seconds"
			}
			answers[kind]++
		}
		for _, fate := range registration.Fates(seed, user) {
			fates[fate]++
		}
	}
	for _, kind := range []string{"201", "400", "422", "429 seconds", "429 date", "500", "503", "503 seconds", "0"} {
		if answers[kind] == 0 {
			t.Errorf("nobody is answered %q: %v", kind, answers)
		}
	}
	for _, fate := range []registration.Fate{registration.Completes, registration.Permanent, registration.Exhausted, registration.Blocked} {
		if fates[fate] == 0 {
			t.Errorf("nobody meets the fate %q: %v", fate, fates)
		}
	}
}

// A worker that is killed makes a service answer more calls than there are attempts. That must not change any fate.
func TestLostCallsChangeNoFate(t *testing.T) {
	for user := int64(1); user <= users; user++ {
		fates := registration.Fates(seed, user)
		for _, step := range registration.Steps {
			plan := registration.PlanFor(seed, step.Service, user)
			for lost := range 3 {
				last := plan.Call(lost + step.RetryLimit - 1).Status
				if ended := last == 201; ended != (fates[step.Name] == registration.Completes) && fates[step.Name] != registration.Blocked {
					t.Errorf("user %d, %s: %d calls lost end in %d, planned is %s", user, step.Name, lost, last, fates[step.Name])
				}
			}
		}
	}
}

// userWith finds a user whose first call at a service is answered in a certain way.
func userWith(t *testing.T, service string, answers func(registration.Answer) bool) int64 {
	t.Helper()
	for user := int64(1); user < 100_000; user++ {
		if answers(registration.PlanFor(seed, service, user).Call(0)) {
			return user
		}
	}
	t.Fatal("no such user")
	return 0
}

func post(t *testing.T, services *registration.Services, service string, user int64, key string, attempt, dispatch int) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("%s/users/%d", services.URLs[service], user), strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set(registration.HeaderIdempotencyKey, key)
	request.Header.Set(registration.HeaderAttempt, fmt.Sprint(attempt))
	request.Header.Set(registration.HeaderDispatch, fmt.Sprint(dispatch))
	client := &http.Client{Timeout: 2 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return nil
	}
	if err := response.Body.Close(); err != nil {
		t.Error(err)
	}
	return response
}

func start(t *testing.T) *registration.Services {
	t.Helper()
	services, err := registration.Start(t.Context(), seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := services.Close(); err != nil {
			t.Error(err)
		}
	})
	return services
}

func TestServiceAnswersByItsPlan(t *testing.T) {
	services := start(t)
	cases := map[string]func(registration.Answer) bool{
		"created":             func(a registration.Answer) bool { return a.Status == 201 },
		"refused":             func(a registration.Answer) bool { return a.Status == 422 },
		"patience in seconds": func(a registration.Answer) bool { return a.RetryAfter > 0 && !a.AsDate },
		"patience as a date":  func(a registration.Answer) bool { return a.AsDate },
		"broken":              func(a registration.Answer) bool { return a.Status == 500 && a.RetryAfter == 0 },
	}
	for name, wanted := range cases {
		t.Run(name, func(t *testing.T) {
			user := userWith(t, "user_service", wanted)
			plan := registration.PlanFor(seed, "user_service", user).Call(0)
			response := post(t, services, "user_service", user, name, 1, 1)
			if response == nil || response.StatusCode != plan.Status {
				t.Fatalf("got %v, planned %v", response, plan)
			}
			header := response.Header.Get("Retry-After")
			switch {
			case plan.AsDate:
				date, err := http.ParseTime(header)
				if err != nil || time.Until(date) < plan.RetryAfter-time.Second {
					t.Errorf("Retry-After %q, planned %s: %v", header, plan.RetryAfter, err)
				}
			case header != strings.TrimSuffix(fmt.Sprint(plan.RetryAfter.Seconds()), ".0") && plan.RetryAfter > 0:
				t.Errorf("Retry-After %q, planned %s", header, plan.RetryAfter)
			case header != "" && plan.RetryAfter == 0:
				t.Errorf("Retry-After %q was not planned", header)
			}
		})
	}
}

func TestServiceHangsUntilTheCallerGivesUp(t *testing.T) {
	services := start(t)
	user := userWith(t, "billing_service", func(a registration.Answer) bool { return a.Status == 0 })
	if response := post(t, services, "billing_service", user, "key", 1, 1); response != nil {
		t.Fatalf("answered %s", response.Status)
	}
	calls := services.Calls()
	if len(calls) != 1 || calls[0].Answer.Status != 0 {
		t.Fatalf("remembered %+v", calls)
	}
}

func TestServiceDoesItsWorkOncePerKey(t *testing.T) {
	services := start(t)
	user := userWith(t, "user_service", func(a registration.Answer) bool { return a.Status == 201 })
	for dispatch := 1; dispatch <= 3; dispatch++ {
		if response := post(t, services, "user_service", user, "key", 1, dispatch); response == nil || response.StatusCode != 201 {
			t.Fatalf("dispatch %d: %v", dispatch, response)
		}
	}
	audited := registration.Audit(services.Calls())
	if audited.Repeats != 2 || len(audited.Findings) != 0 {
		t.Errorf("%+v", audited)
	}
}

var zero = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// call is a call at the user service, some seconds from zero.
func call(attempt, dispatch int, began, ended float64, answer registration.Answer) registration.Call {
	at := func(seconds float64) time.Time { return zero.Add(time.Duration(seconds * float64(time.Second))) }
	c := registration.Call{
		Service: "user_service", User: 7, IdempotencyKey: "key", Attempt: attempt, Dispatch: dispatch,
		BeganAt: at(began), EndedAt: at(ended), Answer: answer,
	}
	if answer.RetryAfter > 0 {
		c.NotBefore = c.EndedAt.Add(answer.RetryAfter)
	}
	return c
}

func TestAudit(t *testing.T) {
	created := registration.Answer{Status: 201}
	refused := registration.Answer{Status: 422}
	broken := registration.Answer{Status: 503}
	patience := registration.Answer{Status: 429, RetryAfter: 3 * time.Second}
	hang := registration.Answer{}
	elsewhere := func(c registration.Call) registration.Call {
		c.Service = "billing_service"
		return c
	}
	otherKey := func(c registration.Call) registration.Call {
		c.IdempotencyKey = "other"
		return c
	}
	cases := map[string]struct {
		calls []registration.Call
		rule  string // empty: all is well
	}{
		"after the hint":                        {[]registration.Call{call(1, 1, 0, 1, patience), call(2, 2, 4, 5, created)}, ""},
		"before the hint":                       {[]registration.Call{call(1, 1, 0, 1, patience), call(2, 2, 3.9, 5, created)}, registration.RuleEarly},
		"after the first backoff":               {[]registration.Call{call(1, 1, 0, 1, broken), call(2, 2, 3, 4, created)}, ""},
		"before the first backoff":              {[]registration.Call{call(1, 1, 0, 1, broken), call(2, 2, 2.9, 4, created)}, registration.RuleEarly},
		"before the third backoff":              {[]registration.Call{call(3, 3, 0, 1, broken), call(4, 4, 8.9, 9, created)}, registration.RuleEarly},
		"a hang counts from its start":          {[]registration.Call{call(1, 1, 0, 2, hang), call(2, 2, 2.1, 4, created)}, ""},
		"a killed run is run again at once":     {[]registration.Call{call(1, 1, 0, 1, patience), call(1, 2, 1.1, 2, created)}, ""},
		"the last call of an attempt decides":   {[]registration.Call{call(1, 1, 0, 1, broken), call(1, 2, 1.1, 2, patience), call(2, 3, 4.5, 5, created)}, registration.RuleEarly},
		"nothing after a refusal":               {[]registration.Call{call(1, 1, 0, 1, refused), call(2, 2, 60, 61, created)}, registration.RulePermanent},
		"a refusal that was never reported":     {[]registration.Call{call(1, 1, 0, 1, refused), call(1, 2, 9, 10, refused)}, ""},
		"one attempt too many":                  {[]registration.Call{call(6, 6, 0, 1, broken)}, registration.RuleLimit},
		"done under two keys":                   {[]registration.Call{call(1, 1, 0, 1, created), otherKey(call(1, 2, 9, 10, created))}, registration.RuleTwice},
		"a service before the one it waits for": {[]registration.Call{elsewhere(call(1, 1, 0, 1, created)), call(1, 1, 0, 1, created)}, registration.RuleOrder},
		"a service after the one it waits for":  {[]registration.Call{call(1, 1, 0, 1, created), elsewhere(call(1, 1, 1, 2, created))}, ""},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			rules := make(map[string]bool)
			audited := registration.Audit(test.calls)
			for _, finding := range audited.Findings {
				rules[finding.Rule] = true
			}
			wanted := make(map[string]bool)
			if test.rule != "" {
				wanted[test.rule] = true
			}
			if !maps.Equal(rules, wanted) {
				t.Errorf("found %+v, wanted %q", audited.Findings, test.rule)
			}
		})
	}
}

func TestASteadyServiceServesUnlessItIsDown(t *testing.T) {
	services, err := registration.StartSteady(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := services.Close(); err != nil {
			t.Error(err)
		}
	})
	for i, down := range []bool{false, true, false} {
		services.SetDown(down)
		response := post(t, services, registration.UserService, int64(i+1), fmt.Sprint("key", i), 1, 1)
		if want := map[bool]int{false: 201, true: 503}[down]; response == nil || response.StatusCode != want {
			t.Errorf("call %d: %v, want %d", i, response, want)
		}
	}
	if calls := services.Calls(); len(calls) != 3 || calls[1].Answer.Status != 503 {
		t.Errorf("it remembers %+v", calls)
	}
}
