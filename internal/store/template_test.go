package store_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

func (w *world) register(name, version, body string) (task.Registered, error) {
	w.Helper()
	return w.s.RegisterTemplate(w.Context(), w.ns, task.NewTemplate{
		Name: name, Version: version, Body: []byte(body), Digest: []byte("digest of " + body), Actor: "ops",
	})
}

func (w *world) registered(name, version, body string) task.Registered {
	w.Helper()
	r, err := w.register(name, version, body)
	w.ok(err)
	return r
}

func (w *world) latest(name string) string {
	w.Helper()
	v, ok, err := w.s.Template(w.Context(), w.ns, "default", name, "")
	w.ok(err)
	if !ok {
		return ""
	}
	return v.Version
}

func TestRegisterWithoutAVersionTakesTheNextPatchUnlessEqual(t *testing.T) {
	w := newWorld(t)
	equal(w, "first", w.registered("mail", "", "a").Version, "0.1.0")
	again := w.registered("mail", "", "a")
	equal(w, "equal body", again.Version, "0.1.0")
	equal(w, "equal body", again.AlreadyRegistered, true)
	equal(w, "next", w.registered("mail", "", "b").Version, "0.1.1")
	// The body of an older version is new against the latest.
	equal(w, "back", w.registered("mail", "", "a").Version, "0.1.2")
	w.registered("mail", "0.9.9", "c")
	equal(w, "next of the latest", w.registered("mail", "", "d").Version, "0.9.10")
	v, ok, err := w.s.Template(t.Context(), w.ns, "default", "mail", "0.1.1")
	w.ok(err)
	equal(w, "found", ok, true)
	equal(w, "body", string(v.Body), "b")
	equal(w, "who", v.CreatedBy, "ops")
	_, ok, err = w.s.Template(t.Context(), w.ns, "default", "mail", "7.0.0")
	w.ok(err)
	equal(w, "found", ok, false)
}

func TestRegisterWithAVersionIsRefusedForAnotherBody(t *testing.T) {
	w := newWorld(t)
	w.registered("mail", "1.0.0", "a")
	equal(w, "same", w.registered("mail", "1.0.0", "a").AlreadyRegistered, true)
	_, err := w.register("mail", "1.0.0", "b")
	w.refused(err, task.TemplateVersionExists)
	for _, version := range []string{"1", "1.0", "01.0.0", "1.0.0-", "1.0.0-a..b", "1.0.0-01", "v1.0.0", "1.0.0+build"} {
		_, err := w.register("mail", version, "c")
		w.refused(err, task.Validation)
	}
}

func TestLatestSortsAsSemver(t *testing.T) {
	w := newWorld(t)
	// from the oldest to the newest, as semver.org has it
	versions := []string{
		"0.9.0", "0.10.0", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
		"1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0-rc.1",
	}
	shuffled := slices.Clone(versions)
	for i := range shuffled {
		j := (i * 5) % len(shuffled)
		shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
	}
	for _, v := range shuffled {
		w.registered("mail", v, v)
	}
	equal(w, "latest is the greatest release", w.latest("mail"), "1.10.0")
	w.registered("new", "3.0.0-rc.2", "a")
	w.registered("new", "3.0.0-rc.10", "b")
	equal(w, "or the greatest pre-release", w.latest("new"), "3.0.0-rc.10")
	equal(w, "which leads to its release", w.registered("new", "", "c").Version, "3.0.0")

	var listed []string
	var after store.TemplateKey
	for {
		page, err := w.s.Templates(t.Context(), w.ns, "default", store.TemplateFilter{}, after, 5)
		w.ok(err)
		for _, v := range page {
			listed = append(listed, v.Name+" "+v.Version)
			after = store.TemplateKey{Name: v.Name, Version: v.Version}
		}
		if len(page) < 5 {
			break
		}
	}
	var want []string
	for _, v := range slices.Backward(versions) {
		want = append(want, "mail "+v)
	}
	want = append(want, "new 3.0.0", "new 3.0.0-rc.10", "new 3.0.0-rc.2")
	equal(w, "listed", fmt.Sprint(listed), fmt.Sprint(want))

	page, err := w.s.Templates(t.Context(), w.ns, "default", store.TemplateFilter{LatestOnly: true}, store.TemplateKey{}, 10)
	w.ok(err)
	equal(w, "latest only", len(page), 2)
	equal(w, "latest only", page[0].Version, "1.10.0")
	page, err = w.s.Templates(t.Context(), w.ns, "default", store.TemplateFilter{Name: "new"}, store.TemplateKey{}, 10)
	w.ok(err)
	equal(w, "by name", len(page), 3)
}

func TestConcurrentRegistrationsEachGetAVersion(t *testing.T) {
	w := newWorld(t)
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		seen = map[string]bool{}
	)
	for i := range 8 {
		all.Go(func() {
			r, err := w.s.RegisterTemplate(t.Context(), w.ns, task.NewTemplate{
				Name: "mail", Body: []byte{byte(i)}, Digest: []byte{byte(i)},
			})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			seen[r.Version] = true
		})
	}
	all.Wait()
	equal(w, "versions", len(seen), 8)
	equal(w, "latest", w.latest("mail"), "0.1.7")
}
