# Sourced by setup.sh: installs the pinned Bun into node_modules, from npm's package, and makes it a command.

# shellcheck shell=bash
# shellcheck disable=SC2154  # root, bun and bun_version come from common.sh, shell_path from setup.sh

# SHA-512 of npm's packages @oven/bun-PLATFORM, version $bun_version.
bun_sha512() {
  case "$1" in
    linux-x64) echo 2165fd0442e8187014b4ca2791e49a35a6705f3464fa80f0e8c93e1c115777728760804d06c20646ea4c64f7203680db2692eeea00098c8a0854f66db75689d6 ;;
    linux-aarch64) echo e015e6b122a78ceae5196a99578c7fa166bb015a11f81ea509775d3333805c1226dede747ac960f706faea09ad5b501a984435975083be69abbb2b0486a39632 ;;
    linux-x64-musl) echo d744285bf61f4e09d445a184687a490a25e32c8d9ee624ed7d50da03924a73253369ad5caba715518f7f52ae57918cefb518c72d17bd3a3fe54c3210731cbc1d ;;
    linux-aarch64-musl) echo 5c235cf96bef30074d35bf8e593a20a72f8df709bad9f91578454b6fa868c34459856e4b3e2e9cec19647950ae5a9b3b5e3125dac685a4715adb4ff513e3c01e ;;
  esac
}

# Installs the pinned Bun from npm's package into node_modules/@oven. The package is unpacked directly: npm's `bun`
# package would fetch the same file by an install script, which npm may block.
install_bun() {
  local platform libc="" package target temporary
  command -v npm >/dev/null ||
    die "Bun $bun_version or later is needed, and npm, which would install it, is missing. Debian and Ubuntu: apt-get install npm"
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) platform=linux-x64 ;;
    Linux-aarch64) platform=linux-aarch64 ;;
    *) die "Bun $bun_version or later is needed. On $(uname -s) $(uname -m), install it by: npm install --global bun@$bun_version" ;;
  esac
  if ls /lib/ld-musl-*.so.1 >/dev/null 2>&1 && ! ls /lib*/ld-linux-*.so.? /lib*/*/ld-linux-*.so.? >/dev/null 2>&1; then
    libc=-musl
  fi
  platform="$platform$libc"
  package="@oven/bun-$platform"
  say "installing Bun $bun_version (50 MB, npm's package $package)"
  target="node_modules/$package"
  temporary=$(mktemp -d node_modules/.dlfs-bun-XXXXXX)
  # shellcheck disable=SC2064  # the folder of now
  trap "rm -rf '$root/$temporary'" EXIT
  npm pack "$package@$bun_version" --pack-destination "$temporary" --loglevel error >/dev/null ||
    die "npm could not fetch $package@$bun_version (the message is above)"
  if ! (cd "$temporary" && echo "$(bun_sha512 "$platform")  $(echo ./*.tgz)" | sha512sum --check --status); then
    die "$package@$bun_version from npm is not the package that dlfs was made with: its SHA-512 differs"
  fi
  tar -xzf "$temporary"/*.tgz -C "$temporary"
  rm -rf "$target"
  mkdir -p "$(dirname "$target")"
  mv "$temporary/package" "$target"
  rm -rf "$temporary"
  trap - EXIT
  chmod +x "$target/bin/bun"
  "$target/bin/bun" --version >/dev/null || die "$target/bin/bun does not run on this machine"
}

# Makes the installed Bun a command: for programs that npm starts, and for the shell, by a link in a folder on PATH,
# where that replaces no other Bun. Prints what the user has to know when the first argument is yes.
link_bun() {
  local tell="$1" dir installed="$root/${bun#"$root"/}"
  mkdir -p node_modules/.bin
  ln -sfn "../${installed#"$root/node_modules/"}" node_modules/.bin/bun
  ln -sfn bun node_modules/.bin/bunx
  if PATH="$shell_path" command -v bun >/dev/null; then
    [ "$tell" = no ] || say "the bun on PATH is older than $bun_version; npm's commands and 'npx bun' use $installed"
    return
  fi
  if [ -z "${CI:-}" ] && [ "${DLFS_LINK_BUN:-1}" != 0 ]; then
    for dir in /usr/local/bin "$HOME/.local/bin" "$HOME/bin"; do
      case ":$shell_path:" in *":$dir:"*) ;; *) continue ;; esac
      if [ -d "$dir" ] && [ -w "$dir" ] && ln -sfn "$installed" "$dir/bun" && ln -sfn bun "$dir/bunx"; then
        say "bun is now a command: $dir/bun (a link to $installed)"
        return
      fi
    done
  fi
  [ "$tell" = no ] || say "bun is not on PATH; npm's commands and 'npx bun' use $installed"
}
