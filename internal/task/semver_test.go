package task_test

import (
	"fmt"
	"slices"
	"testing"

	"golang.org/x/mod/semver"
	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/task"
)

func parse(t testing.TB, s string) task.Version {
	t.Helper()
	v, ok := task.ParseVersion(s)
	if !ok {
		t.Fatalf("%q is no version", s)
	}
	return v
}

func TestVersionsSort(t *testing.T) {
	// The example of semver.org, between what is said of templates.
	ascending := []string{
		"0.0.0", "0.1.0", "0.9.0", "0.10.0-rc.2", "0.10.0-rc.10", "0.10.0-rc.10.x", "0.10.0", "0.11.0",
		"1.0.0-1", "1.0.0-2", "1.0.0-11", "1.0.0-99999999999999999999999999", "1.0.0--", "1.0.0-0a", "1.0.0-A",
		"1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-alpha-1", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0",
		"2.0.0", "10.0.0", "999999999.0.0",
	}
	for i, a := range ascending {
		for j, b := range ascending {
			if got, want := parse(t, a).Compare(parse(t, b)), sign(i-j); got != want {
				t.Errorf("%s against %s: %d, want %d", a, b, got, want)
			}
		}
	}
}

func sign(n int) int { return min(1, max(-1, n)) }

func TestVersionRefuses(t *testing.T) {
	for _, s := range []string{
		"", "1", "1.2", "1.2.3.4", "v1.2.3", "01.2.3", "1.02.3", "1.2.03", "1.2.-3", "-1.2.3", "1.2.3-", "1.2.3-01", "1.2.3-a..b", "1.2.3-a.",
		"1.2.3-.a", "1.2.3-é", "1.2.3+build", "1.2.3-a+b", " 1.2.3", "1.2.3 ", "1.2.x", "1..3", "1234567890.0.0", "0x1.0.0", "1.2.3-" + string(make([]byte, 255)),
	} {
		if v, ok := task.ParseVersion(s); ok {
			t.Errorf("%q is taken as %v", s, v)
		}
	}
}

// golang.org/x/mod/semver is the judge, on versions drawn near one another.
func TestVersionsAgreeWithSemver(t *testing.T) {
	number := rapid.SampledFrom([]string{"0", "1", "2", "9", "10", "100"})
	identifier := rapid.OneOf(number, rapid.SampledFrom([]string{"a", "b", "aa", "A", "-", "rc", "1a", "a1", "123456789012345678901"}))
	version := rapid.Custom(func(t *rapid.T) string {
		s := fmt.Sprintf("%s.%s.%s", number.Draw(t, "major"), number.Draw(t, "minor"), number.Draw(t, "patch"))
		for i, id := range rapid.SliceOfN(identifier, 0, 3).Draw(t, "pre") {
			s += string("-..."[min(i, 1)]) + id
		}
		return s
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := version.Draw(t, "a"), version.Draw(t, "b")
		va, okA := task.ParseVersion(a)
		vb, okB := task.ParseVersion(b)
		if !okA || !okB || va.String() != a {
			t.Fatalf("%s and %s are read as %v and %v", a, b, va, vb)
		}
		if got, want := va.Compare(vb), semver.Compare("v"+a, "v"+b); got != want {
			t.Errorf("%s against %s: %d, want %d", a, b, got, want)
		}
		if next, ok := va.NextPatch(); !ok || next.Compare(va) <= 0 || next.Pre != "" {
			t.Errorf("after %s comes %v", a, next)
		}
	})
}

func TestNextPatch(t *testing.T) {
	for from, want := range map[string]string{"0.1.0": "0.1.1", "1.9.9": "1.9.10", "2.0.0-rc.1": "2.0.1", "0.0.999999998": "0.0.999999999"} {
		if next, ok := parse(t, from).NextPatch(); !ok || next.String() != want {
			t.Errorf("after %s comes %v, want %s", from, next, want)
		}
	}
	if next, ok := parse(t, "1.0.999999999").NextPatch(); ok {
		t.Errorf("after the greatest patch comes %v", next)
	}
	if got := task.FirstVersion.String(); got != "0.1.0" {
		t.Errorf("the first version is %s", got)
	}
}

func TestLatest(t *testing.T) {
	for _, tt := range []struct {
		versions []string
		want     string
	}{
		{[]string{"0.9.0", "0.10.0", "0.2.0"}, "0.10.0"},
		{[]string{"2.0.0-rc.1", "1.0.0", "0.10.0"}, "1.0.0"},
		{[]string{"1.0.0", "2.0.0-rc.1"}, "1.0.0"},
		{[]string{"2.0.0-rc.2", "2.0.0-rc.10", "2.0.0-beta"}, "2.0.0-rc.10"},
		{[]string{"0.0.0"}, "0.0.0"},
	} {
		versions := make([]task.Version, len(tt.versions))
		for i, s := range tt.versions {
			versions[i] = parse(t, s)
		}
		if got, ok := task.Latest(versions); !ok || got.String() != tt.want {
			t.Errorf("the latest of %v is %v, want %s", tt.versions, got, tt.want)
		}
		slices.Reverse(versions)
		if got, _ := task.Latest(versions); got.String() != tt.want {
			t.Errorf("the latest of %v is %v, want %s", versions, got, tt.want)
		}
	}
	if _, ok := task.Latest(nil); ok {
		t.Error("no versions have a latest")
	}
}
